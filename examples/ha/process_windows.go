package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// detach keeps Ctrl-C in the terminal from the process: the supervisor ends it.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

func signalPause(*os.Process, bool) error {
	return errors.New("a process cannot be paused on Windows: kill it or cut it off instead")
}

// terminate closes the node's input, which ends it in good order as SIGTERM does elsewhere.
func terminate(_ *os.Process, stdin io.Closer) error { return stdin.Close() }

// tellWhere does nothing here: there is no signal for it.
func tellWhere(*os.Process) {}

// canPause says whether signalPause works here.
const canPause = false
