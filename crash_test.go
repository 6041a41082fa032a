package colmena_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// crashKind is the life a process leads until it is killed at a crash point.
type crashKind string

const (
	// crashAlone is a single node from its first start on, with snapshots.
	crashAlone crashKind = "alone"
	// crashBig is crashAlone with rows large enough for checkpoints.
	crashBig crashKind = "big"
	// crashReplay is the second start of a single node whose first process was killed
	// between the log and the database.
	crashReplay crashKind = "replay"
	// crashFollower is a follower in a cluster of three.
	crashFollower crashKind = "follower"
	// crashBehind is a follower that missed what the leader's log no longer has.
	crashBehind crashKind = "behind"
	// crashLeader leads a cluster of three.
	crashLeader crashKind = "leader"
	// crashTx leads a cluster of three on which interactive transactions run.
	crashTx crashKind = "transactions"
)

// crashPlan says when a process is killed: the nth time that it passes the point.
type crashPlan struct {
	kind crashKind
	nth  []int
}

// crashPlans has every crash point in the source: see TestEveryCrashPointIsTried.
var crashPlans = map[string][]crashPlan{
	"bootstrap.before-formed":        {{crashAlone, []int{1}}},
	"checkpoint.after-passive":       {{crashBig, []int{1}}},
	"commit.after":                   {{crashAlone, []int{1, 2, 9}}, {crashLeader, []int{5}}, {crashTx, []int{9}}},
	"commit.before":                  {{crashAlone, []int{1, 2, 9}}, {crashLeader, []int{5}}, {crashTx, []int{9}}},
	"ahead.folded":                   {{crashTx, []int{1, 4}}},
	"apply.before-commit":            {{crashReplay, []int{1}}, {crashFollower, []int{1, 4}}, {crashBehind, []int{1}}},
	"apply.after-commit":             {{crashReplay, []int{1}}, {crashFollower, []int{1, 4}}, {crashBehind, []int{1}}},
	"create.before-rename":           {{crashAlone, []int{1, 2}}},
	"durable.rename.after":           {{crashAlone, crashTimes(12)}, {crashBehind, crashTimes(3)}},
	"durable.rename.before":          {{crashAlone, crashTimes(9)}, {crashBehind, crashTimes(3)}},
	"durable.write":                  {{crashAlone, crashTimes(9)}, {crashBehind, crashTimes(3)}},
	"generations.commit.renamed":     {{crashBehind, []int{1}}},
	"generations.create":             {{crashAlone, []int{1}}},
	"install.commit.after":           {{crashBehind, []int{1}}},
	"install.commit.before":          {{crashBehind, []int{1}}},
	"install.manifest":               {{crashBehind, []int{1}}},
	"install.reference":              {{crashBehind, []int{1}}},
	"install.staged":                 {{crashBehind, []int{1}}},
	"logstore.append.after":          {{crashAlone, []int{1, 2, 12}}, {crashFollower, []int{1, 3}}, {crashBehind, []int{1, 2, 3}}},
	"logstore.append.before":         {{crashAlone, []int{1, 2, 12}}, {crashFollower, []int{1, 3}}, {crashBehind, []int{1}}},
	"logstore.compact.chunk":         {{crashAlone, []int{1, 2}}},
	"logstore.create":                {{crashAlone, []int{1}}},
	"propose.before":                 {{crashAlone, []int{1, 2, 9}}, {crashLeader, []int{5}}, {crashTx, []int{9}}},
	"session.committing":             {{crashTx, []int{1, 10}}},
	"session.parked":                 {{crashTx, []int{1, 4}}},
	"session.ran":                    {{crashTx, []int{1, 25}}},
	"session.resumed":                {{crashTx, []int{1, 4}}},
	"snapshot.persist.before":        {{crashAlone, []int{1}}},
	"snapshot.publish.after-rename":  {{crashAlone, []int{1, 2}}},
	"snapshot.publish.before-rename": {{crashAlone, []int{1, 2}}},
	"snapshot.reap":                  {{crashAlone, []int{1}}},
	"snapshot.synced":                {{crashAlone, []int{1, 2}}},
}

// crashTimes is 1 to n.
func crashTimes(n int) (nth []int) {
	for i := range n {
		nth = append(nth, i+1)
	}
	return nth
}

// TestEveryCrashPointIsTried compares the table with the source.
func TestEveryCrashPointIsTried(t *testing.T) {
	call := regexp.MustCompile(`CrashPoint\("([^"]+)"\)`)
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range call.FindAllSubmatch(text, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("%d crash points, %v", len(found), err)
	}
	for name := range found {
		if len(crashPlans[name]) == 0 {
			t.Errorf("crash point %s is in the source and nothing here dies at it", name)
		}
	}
	for name := range crashPlans {
		if !found[name] {
			t.Errorf("crash point %s is nowhere in the source", name)
		}
	}
}

// crashRun is what a child process is told.
type crashRun struct {
	NodeID, Dir, Bind, Join string
	Table                   bool // make it
	Writer                  int  // number of the first writer
	Writers                 int
	Rows                    int  // of each writer
	Pad                     int  // bytes of each row
	SnapshotEvery           int  // rows of the first writer
	Transactions            bool // rows are written by interactive transactions, in two halves
}

const (
	crashEnv      = "COLMENA_TEST_CRASH_RUN"
	crashTable    = "CREATE TABLE IF NOT EXISTS crash(writer INTEGER, n INTEGER, pad BLOB)" // takes a row twice
	crashInsert   = "INSERT INTO crash VALUES(?, ?, zeroblob(?))"
	crashPatience = 20 * time.Second // until a child must have died
	crashRestart  = 5 * time.Second  // until the next start must be of use
	crashFailed   = 3                // exit code
)

// The children are this test's binary, which is told so before any test begins.
func init() {
	told := os.Getenv(crashEnv)
	if told == "" {
		return
	}
	if err := crashChild(told); err != nil {
		fmt.Println("failed:", err)
		os.Exit(crashFailed)
	}
	os.Exit(0)
}

func crashConfig(r crashRun) colmena.Config {
	cfg := colmena.Config{NodeID: r.NodeID, DataDir: r.Dir, Bind: r.Bind, SnapshotInterval: time.Hour}
	cfg.HeartbeatTimeout, cfg.ElectionTimeout = 30*time.Millisecond, 30*time.Millisecond
	if r.Bind != "" {
		cfg.HeartbeatTimeout, cfg.ElectionTimeout = 250*time.Millisecond, 250*time.Millisecond
		cfg.Join = []string{r.Join}
	}
	colmena.SetTrailingLogs(&cfg, crashTrailing)
	return cfg
}

// crashTrailing is how many entries are kept: few, so that logs are cut.
const crashTrailing = 8

// crashChild writes numbered rows and tells of each that was acknowledged.
func crashChild(told string) error {
	var r crashRun
	if err := json.Unmarshal([]byte(told), &r); err != nil {
		return err
	}
	n, err := colmena.New(crashConfig(r))
	if err != nil {
		return err
	}
	fmt.Println("up")
	ctx, cancel := context.WithTimeout(context.Background(), crashPatience)
	defer cancel()
	if r.Table {
		if _, err := n.DB().ExecContext(ctx, crashTable); err != nil {
			return err
		}
	}
	write := crashWriter
	if r.Transactions {
		write = crashTxWriter
	}
	errs := make([]error, r.Writers)
	var wg sync.WaitGroup
	for w := range r.Writers {
		wg.Go(func() { errs[w] = write(ctx, n, r, w) })
	}
	wg.Wait()
	return errors.Join(append(errs, n.Close())...)
}

func crashWriter(ctx context.Context, n *colmena.Node, r crashRun, w int) error {
	for i := 1; i <= r.Rows; i++ {
		if _, err := n.DB().ExecContext(ctx, crashInsert, r.Writer+w, i, r.Pad); err != nil {
			return err
		}
		fmt.Println("acked", r.Writer+w, i)
		if w == 0 && r.SnapshotEvery > 0 && i%r.SnapshotEvery == 0 {
			if err := n.Snapshot(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// crashAcks is the last row of each writer that was acknowledged.
type crashAcks map[int]int

// crashStart starts a child that is to die at a point, and returns a function that waits
// until it has. up is called when the node is open.
func crashStart(t *testing.T, r crashRun, point string, acks crashAcks, up func()) (await func()) {
	t.Helper()
	told, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), crashPatience)
	cmd := osexec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+string(told), durable.CrashPointEnv+"="+point)
	var noise bytes.Buffer
	cmd.Stderr = &noise
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var last string
	go func() {
		defer cancel()
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var w, n int
			last = lines.Text()
			if _, err := fmt.Sscanf(last, "acked %d %d", &w, &n); err == nil {
				acks[w] = n
			} else if last == "up" && up != nil {
				up()
			}
		}
		done <- errors.Join(cmd.Wait(), ctx.Err())
	}()
	return func() {
		t.Helper()
		err := <-done
		killed := -1 // the exit code of a process that a signal ended
		if runtime.GOOS == "windows" {
			killed = 1
		}
		var exit *osexec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != killed || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the process was to be killed at %s and ended with %v; it last said %q\n%s", point, err, last, noise.String())
		}
	}
}

// crashRows checks that every acknowledged row is there once, and of each writer at most
// the next one too.
func crashRows(ctx context.Context, n *colmena.Node, acks crashAcks) error {
	rows, err := n.DB().QueryContext(colmena.WithConsistency(ctx, colmena.Strong), "SELECT writer, n, count(*) FROM crash GROUP BY writer, n ORDER BY writer, n")
	var missing *colmena.SQLError
	if errors.As(err, &missing) && len(acks) == 0 && strings.Contains(err.Error(), "no such table") {
		return nil
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	have := crashAcks{}
	for rows.Next() {
		var w, i, count int
		if err := rows.Scan(&w, &i, &count); err != nil {
			return err
		}
		if count != 1 || i != have[w]+1 {
			return fmt.Errorf("writer %d: row %d is there %d times, after row %d", w, i, count, have[w])
		}
		have[w] = i
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for w, n := range acks {
		if have[w] < n {
			return fmt.Errorf("writer %d: %d rows were acknowledged, %d are there", w, n, have[w])
		}
	}
	for w, n := range have {
		if n > acks[w]+1 {
			return fmt.Errorf("writer %d: %d rows were acknowledged, %d are there", w, acks[w], n)
		}
	}
	return nil
}

// TestKilledAloneAtEveryPoint kills single nodes. The next start, unattended, has
// everything that was acknowledged, once.
func TestKilledAloneAtEveryPoint(t *testing.T) {
	for _, point := range slices.Sorted(maps.Keys(crashPlans)) {
		for _, plan := range crashPlans[point] {
			if plan.kind != crashAlone && plan.kind != crashBig && plan.kind != crashReplay {
				continue
			}
			for i, nth := range plan.nth {
				if i > 0 && testing.Short() {
					break
				}
				t.Run(fmt.Sprintf("%s:%d", point, nth), func(t *testing.T) {
					t.Parallel()
					crashOne(t, plan.kind, fmt.Sprintf("%s:%d", point, nth))
				})
			}
		}
	}
}

func crashOne(t *testing.T, kind crashKind, point string) {
	run := crashRun{Dir: t.TempDir(), Table: true, Writer: 10, Writers: 2, Rows: 60, SnapshotEvery: 12}
	acks := crashAcks{}
	switch kind {
	case crashBig:
		run.Rows, run.Pad, run.SnapshotEvery = 200, 200_000, 0
	case crashReplay:
		crashStart(t, run, "commit.before:9", acks, nil)()
		run.Writer += run.Writers
	}
	crashStart(t, run, point, acks, nil)()
	began := time.Now()
	cfg := crashConfig(run)
	cfg.Logger = testcluster.Logger(t, 1)
	n, err := colmena.New(cfg)
	if err != nil {
		t.Fatalf("the start after the crash: %v", err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx := limit(t)
	if err := crashRows(ctx, n, acks); err != nil {
		t.Fatal(err)
	}
	if _, err := n.DB().ExecContext(ctx, crashTable); err != nil {
		t.Fatal(err)
	}
	exec(t, n, crashInsert, 1, 1, 0)
	if d := time.Since(began); d > crashRestart {
		t.Errorf("it took %v until the node was of use again", d)
	}
	acks[1] = 1
	if err := crashRows(ctx, n, acks); err != nil {
		t.Error(err)
	}
	for _, name := range n.Databases() {
		testcluster.Check(t, n, name)
	}
	crashLitter(t, run.Dir)
}

// crashLitter finds what an interrupted write of a file left behind.
func crashLitter(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), ".colmena-tmp-") {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestKilledInAClusterAtEveryPoint kills one of three nodes, while all write. It comes
// back unattended with the same flags, and all three hold the same.
func TestKilledInAClusterAtEveryPoint(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) {
		cfg.SnapshotInterval = time.Hour
		colmena.SetTrailingLogs(cfg, crashTrailing)
	})
	exec(t, c.Node(0), crashTable)
	acks, writer := crashAcks{}, 100
	for _, point := range slices.Sorted(maps.Keys(crashPlans)) {
		for _, plan := range crashPlans[point] {
			if plan.kind != crashFollower && plan.kind != crashBehind && plan.kind != crashLeader {
				continue
			}
			for i, nth := range plan.nth {
				if testing.Short() && (i > 0 || writer%300 != 100) {
					writer += 100
					continue
				}
				name := fmt.Sprintf("%s %s:%d", plan.kind, point, nth)
				if !t.Run(name, func(t *testing.T) {
					c.TB = t
					crashMember(t, c, plan.kind, fmt.Sprintf("%s:%d", point, nth), writer, acks)
				}) {
					c.SkipCompare = true
					return
				}
				c.TB = t
				writer += 100
			}
		}
	}
}

// crashVictim is the node that is killed: one that joined, so its flags say how.
const crashVictim = 2

func crashMember(t *testing.T, c *testcluster.Cluster, kind crashKind, point string, writer int, acks crashAcks) {
	ctx := limit(t)
	victim := c.Node(crashVictim)
	run := crashRun{NodeID: victim.ID(), Dir: c.Config(crashVictim).DataDir, Bind: victim.Addr(), Join: c.Node(0).Addr(), Writer: writer, Writers: 2, Rows: 100_000}
	c.Stop(crashVictim)
	at := c.Node(c.Leader())
	if kind == crashBehind {
		crashFill(t, ctx, at, writer+50, acks)
	}
	quit, stopped := make(chan struct{}), make(chan error, 1)
	mine := 0
	go func() { stopped <- crashLoad(ctx, c.Node(0), writer+60, &mine, quit) }()
	var up func()
	if kind == crashLeader {
		up = func() { crashTransfer(t, ctx, c.Node(0), run.NodeID) }
	}
	crashStart(t, run, point, acks, up)()
	began := time.Now()
	victim = c.Start(crashVictim)
	if err := victim.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > crashRestart {
		t.Errorf("it took %v until the node was of use again", d)
	}
	close(quit)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	acks[writer+60] = mine
	if err := crashRows(ctx, victim, acks); err != nil {
		t.Fatal(err)
	}
	for _, w := range []int{writer, writer + 1} { // what the next check must find
		if err := crashSettle(ctx, victim, w, acks); err != nil {
			t.Fatal(err)
		}
	}
	c.Compare()
}

// crashFill writes more than the log will keep, and has the log cut.
func crashFill(t *testing.T, ctx context.Context, n *colmena.Node, writer int, acks crashAcks) {
	t.Helper()
	for i := range 4 * crashTrailing {
		exec(t, n, crashInsert, writer, i+1, 0)
		acks[writer] = i + 1
	}
	if err := n.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
}

// crashLoad writes through a node that stays, until it is told to quit.
func crashLoad(ctx context.Context, n *colmena.Node, writer int, done *int, quit chan struct{}) error {
	for {
		select {
		case <-quit:
			return nil
		default:
		}
		if _, err := n.DB().ExecContext(ctx, crashInsert, writer, *done+1, 0); err != nil {
			return fmt.Errorf("a write through a node that was not killed: %w", err)
		}
		*done++
	}
}

// crashTransfer makes a node the leader, as soon as it can be.
func crashTransfer(t *testing.T, ctx context.Context, from *colmena.Node, id string) {
	for ctx.Err() == nil {
		if m, ok := from.Leader(); ok && m.ID == id {
			return
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		err := from.TransferLeadership(short, id)
		cancel()
		if err == nil {
			return
		}
	}
}

// crashSettle notes the row of unknown outcome that a dead writer left, if it is there.
func crashSettle(ctx context.Context, n *colmena.Node, writer int, acks crashAcks) error {
	most, err := number(ctx, n, colmena.Strong, "SELECT coalesce(max(n), 0) FROM crash WHERE writer = ?", writer)
	if most > 0 {
		acks[writer] = int(most)
	}
	return err
}
