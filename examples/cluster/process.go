package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// process is a node that the supervisor started, or will start again.
type process struct {
	flags nodeFlags
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{} // closed when the process has been waited for

	mu      sync.Mutex // guards what follows
	lastID  int
	pending map[int]chan response
	gone    bool
}

const startTimeout = 20 * time.Second

// errGone is a call's error when the process ended before it answered.
var errGone = errors.New("the process has ended")

// start starts the process and waits for the address it listens on. A first start binds
// a free port; later ones the same.
func (p *process) start() error {
	flags, err := json.Marshal(p.flags)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(exe)
	p.cmd.Env = append(os.Environ(), nodeEnv+"="+string(flags))
	p.cmd.Stderr = log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ready := make(chan response, 1)
	p.mu.Lock()
	p.pending, p.gone = map[int]chan response{0: ready}, false
	p.mu.Unlock()
	p.ended = make(chan struct{})
	go p.read(stdout)
	select {
	case r, ok := <-ready:
		if !ok {
			return fmt.Errorf("%s did not start: see %s", p.flags.ID, p.logFile())
		}
		p.flags.Bind = r.Addr
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("%s did not start within %v: see %s", p.flags.ID, startTimeout, p.logFile())
	}
}

// logFile is beside the node's directory, which is the node's own.
func (p *process) logFile() string { return filepath.Clean(p.flags.Dir) + ".log" }

// read hands answers to those who wait for them, until the process ends.
func (p *process) read(stdout io.Reader) {
	in := json.NewDecoder(stdout)
	for {
		var r response
		if err := in.Decode(&r); err != nil {
			break
		}
		p.mu.Lock()
		waiting := p.pending[r.ID]
		delete(p.pending, r.ID)
		p.mu.Unlock()
		if waiting != nil {
			waiting <- r
		}
	}
	p.mu.Lock()
	p.gone = true
	for _, waiting := range p.pending {
		close(waiting)
	}
	p.pending = nil
	p.mu.Unlock()
	_ = p.cmd.Wait() // how it ended is the caller's to judge
	close(p.ended)
}

// call asks the node something and waits for the answer, whose Err may be set. The error
// is for a process that ended.
func (p *process) call(op, sql string) (response, error) {
	answer := make(chan response, 1)
	p.mu.Lock()
	if p.gone {
		p.mu.Unlock()
		return response{}, errGone
	}
	p.lastID++
	id := p.lastID
	p.pending[id] = answer
	p.mu.Unlock()
	b, err := json.Marshal(request{ID: id, Op: op, SQL: sql})
	if err != nil {
		return response{}, err
	}
	if _, err := p.stdin.Write(append(b, '\n')); err != nil {
		return response{}, errGone
	}
	r, ok := <-answer
	if !ok {
		return response{}, errGone
	}
	return r, nil
}

// ask is call for questions that must not fail.
func (p *process) ask(op string) (response, error) {
	r, err := p.call(op, "")
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w", p.flags.ID, op, err)
	}
	return r, err
}

// kill ends the process with SIGKILL, and waits until it is gone.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	return err
}

// stop closes the node in good order, and kills it if it takes too long.
func (p *process) stop() error {
	if p.ended == nil {
		return nil // never started
	}
	_ = p.stdin.Close()
	select {
	case <-p.ended:
		return nil
	case <-time.After(startTimeout):
		return errors.Join(fmt.Errorf("%s did not end within %v and was killed", p.flags.ID, startTimeout), p.kill())
	}
}
