package logstore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
)

// appendEnv makes the child append entries one by one, printing each index once it is acknowledged, and then compact.
const appendEnv = "LOGSTORE_APPEND_CHILD"

func appendChild(path string) int {
	s, err := Open(Config{Path: path, StoreID: "n"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	acked, err := os.OpenFile(path+".acked", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 1
	}
	for i := uint64(1); i <= 20; i++ {
		if err := s.StoreLog(entryAt(i, 500)); err != nil {
			return 1
		}
		acked.WriteAt([]byte(strconv.FormatUint(i, 10)), 0)
	}
	if err := s.DeleteRange(1, 10); err != nil {
		return 1
	}
	return 0
}

func TestAKilledProcessLosesNothingAcknowledged(t *testing.T) {
	for _, point := range []string{"logstore.create", "durable.rename.after", "logstore.append.before", "logstore.append.before:9", "logstore.append.after:9", "logstore.compact.chunk"} {
		path := storePath(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), appendEnv+"="+path, durable.CrashPointEnv+"="+point)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() == 1 {
			t.Fatalf("%s: the child was not killed: %v\n%s", point, err, out)
		}
		acked := uint64(0)
		if b, err := os.ReadFile(path + ".acked"); err == nil && len(b) > 0 {
			acked, err = strconv.ParseUint(string(b), 10, 64)
			must(t, err)
		}
		s := mustOpen(t, Config{Path: path, StoreID: "n"})
		must(t, s.Verify(t.Context()))
		last, err := s.LastIndex()
		must(t, err)
		if last < acked || last > acked+1 {
			t.Fatalf("%s: %d was acknowledged, the log ends at %d", point, acked, last)
		}
		must(t, s.StoreLog(entryAt(last+1, 500)))
		must(t, s.Close())
	}
}
