//go:build unix

package main

import (
	"io"
	"os"
	"os/exec"
	"syscall"
)

// detach gives the process a group of its own. Ctrl-C in the terminal then reaches the
// supervisor alone, which ends the nodes in order. And if the supervisor dies while a node
// is paused, the system lets that node go on, so that it finds its input closed and ends.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func signalPause(p *os.Process, on bool) error {
	if on {
		return p.Signal(syscall.SIGSTOP)
	}
	return p.Signal(syscall.SIGCONT)
}

func terminate(p *os.Process, _ io.Closer) error { return p.Signal(syscall.SIGTERM) }

// tellWhere has a process that does not end write down where it is, and end.
func tellWhere(p *os.Process) { _ = p.Signal(syscall.SIGQUIT) }

// canPause says whether signalPause works here.
const canPause = true
