package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// process is a node that the supervisor started, or will start again.
type process struct {
	flags nodeFlags

	// act is held while something is done to the process, so that two buttons pressed at once
	// come one after the other.
	act   sync.Mutex
	cmd   *exec.Cmd // guarded by act
	stdin io.Closer // guarded by act
	fresh int64     // where its part of the log begins; guarded by act

	mu     sync.Mutex    // guards what follows
	ended  chan struct{} // closed when the process has been waited for; nil before the first start
	paused bool
	http   string // where it answers HTTP
	pid    int
	told   bool  // it was told to end
	exit   error // how it ended, once ended is closed
	alone  int   // how often it ended without that
}

// started is what a node writes on its standard output when it listens.
type started struct {
	Bind string `json:"bind"` // to other nodes
	HTTP string `json:"http"`
}

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
)

// Names of a process's states.
const (
	stateRunning = "running"
	statePaused  = "paused"
	stateDown    = "down"
)

// state also returns the process's ID, 0 if it is down.
func (p *process) state() (name string, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.runsLocked():
		return stateDown, 0
	case p.paused:
		return statePaused, p.pid
	}
	return stateRunning, p.pid
}

func (p *process) runsLocked() bool {
	if p.ended == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// address is where the node answers HTTP, "" while it does not run.
func (p *process) address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runsLocked() {
		return ""
	}
	return p.http
}

// start starts the process and waits until it listens. It returns the address for other
// nodes. A process that runs is an error.
func (p *process) start() (bind string, err error) {
	p.act.Lock()
	defer p.act.Unlock()
	if state, _ := p.state(); state != stateDown {
		return "", fmt.Errorf("%s runs already", p.flags.ID)
	}
	flags, err := json.Marshal(p.flags)
	if err != nil {
		return "", err
	}
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer log.Close()
	if p.fresh, err = log.Seek(0, io.SeekEnd); err != nil {
		return "", err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(flags))
	cmd.Stderr = log
	detach(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	p.cmd, p.stdin = cmd, stdin
	ended, listens := make(chan struct{}), make(chan started, 1)
	p.set(func() { p.ended, p.paused, p.told, p.pid, p.http = ended, false, false, cmd.Process.Pid, "" })
	go func() {
		var s started
		if json.NewDecoder(stdout).Decode(&s) == nil {
			listens <- s
		}
		_, _ = io.Copy(io.Discard, stdout) // until it ends
		close(listens)
		err := cmd.Wait()
		p.set(func() {
			if !p.told {
				p.alone++
			}
			p.exit = err
			close(ended)
		})
	}()
	select {
	case s, ok := <-listens:
		if !ok {
			<-ended
			return "", fmt.Errorf("%s did not start: %s (its log is %s)", p.flags.ID, p.lastWords(), p.logFile())
		}
		p.set(func() { p.http = s.HTTP })
		return s.Bind, nil
	case <-time.After(startTimeout):
		return "", errors.Join(fmt.Errorf("%s did not start within %v: its log is %s", p.flags.ID, startTimeout, p.logFile()), p.killLocked())
	}
}

// crashes is how often the process ended without having been told to.
func (p *process) crashes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alone
}

func (p *process) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// logFile is beside the node's directory, which is the node's own.
func (p *process) logFile() string { return filepath.Clean(p.flags.Dir) + ".log" }

// lastWords is what the node said when it ended, or the last line of its log: into which
// another process may write, of a demo that runs in the same directory.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b[min(int(p.fresh), len(b)):])), "\n")
	for _, line := range slices.Backward(lines) {
		if words, ok := strings.CutPrefix(line, nodeEnds); ok {
			return words
		}
	}
	return lines[len(lines)-1]
}

// kill ends the process at once, wherever it is, and waits until it is gone.
func (p *process) kill() error {
	p.act.Lock()
	defer p.act.Unlock()
	return p.killLocked()
}

func (p *process) killLocked() error {
	if state, _ := p.state(); state == stateDown {
		return fmt.Errorf("%s does not run", p.flags.ID)
	}
	p.set(func() { p.told = true })
	err := p.cmd.Process.Kill()
	<-p.ended
	_ = p.stdin.Close()
	return err
}

// pause stops the process's clock, or lets it go on.
func (p *process) pause(on bool) error {
	p.act.Lock()
	defer p.act.Unlock()
	if state, _ := p.state(); state == stateDown {
		return fmt.Errorf("%s does not run", p.flags.ID)
	}
	if err := signalPause(p.cmd.Process, on); err != nil {
		return err
	}
	p.set(func() { p.paused = on })
	return nil
}

// stop ends the process in good order, if it runs, and kills it if that takes too long.
func (p *process) stop() error {
	p.act.Lock()
	defer p.act.Unlock()
	switch state, _ := p.state(); state {
	case stateDown:
		return nil
	case statePaused:
		_ = signalPause(p.cmd.Process, false)
	}
	p.set(func() { p.told = true })
	if err := terminate(p.cmd.Process, p.stdin); err != nil {
		return err
	}
	select {
	case <-p.ended:
		_ = p.stdin.Close()
		if p.exit != nil {
			return fmt.Errorf("%s did not end in good order: %w: %s (its log is %s)", p.flags.ID, p.exit, p.lastWords(), p.logFile())
		}
		return nil
	case <-time.After(stopTimeout):
		tellWhere(p.cmd.Process)
		select {
		case <-p.ended:
		case <-time.After(time.Second):
			_ = p.killLocked()
		}
		return fmt.Errorf("%s did not end within %v and was killed: where it hung is in its log %s", p.flags.ID, stopTimeout, p.logFile())
	}
}
