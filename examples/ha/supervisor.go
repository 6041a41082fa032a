package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// voters and learners are the cluster's size. Three voters bear the loss of any one; a
// fourth voter would bear no more, since then three of four would have to agree.
const (
	voters   = 3
	learners = 1
)

// supervisor starts nodes, signals them, and carries what they say to one another. It takes
// no part in what they decide.
type supervisor struct {
	token   string // what a request must bring to be answered
	began   int64  // Unix milliseconds
	network *network
	nodes   []*process
	byID    map[string]*process
}

// newSupervisor prepares the nodes, which do not run yet. The page's URL is "" without one.
func newSupervisor(dir, page string) (*supervisor, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &supervisor{token: rand.Text(), began: time.Now().UnixMilli(), byID: map[string]*process{}}
	var ids []string
	for i := range voters + learners {
		ids = append(ids, fmt.Sprintf("node-%d", i+1))
	}
	var err error
	if s.network, err = newNetwork(ids); err != nil {
		return nil, err
	}
	for i, id := range ids {
		p := &process{flags: nodeFlags{ID: id, Dir: filepath.Join(dir, id), Advertise: s.network.addr(id), Nodes: ids, Page: page, Token: s.token, Run: s.began}}
		p.flags.Learner = i >= voters
		for _, other := range ids {
			if i > 0 && other != id {
				p.flags.Join = append(p.flags.Join, s.network.addr(other))
			}
		}
		s.nodes, s.byID[id] = append(s.nodes, p), p
	}
	return s, nil
}

func (s *supervisor) startAll() error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, p := range s.nodes {
		wg.Go(func() { errs[i] = s.start(p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// start starts a node that does not run, and lets the others reach it.
func (s *supervisor) start(p *process) error {
	bound, err := p.start()
	if err != nil {
		return err
	}
	s.network.setTarget(p.flags.ID, bound)
	return nil
}

// stop ends all nodes in good order.
func (s *supervisor) stop() error {
	s.network.healAll()
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, p := range s.nodes {
		wg.Go(func() { errs[i] = p.stop() })
	}
	wg.Wait()
	s.network.close()
	return errors.Join(errs...)
}

// action is something that is done to a node.
type action string

const (
	actRestart action = "restart" // end it in good order, if it runs, and start it
	actKill    action = "kill"    // SIGKILL
	actPause   action = "pause"   // SIGSTOP
	actResume  action = "resume"  // SIGCONT
	actCut     action = "cut"     // nothing reaches it, and nothing of what it says arrives
	actDeafen  action = "deafen"  // nothing reaches it
	actMute    action = "mute"    // nothing of what it says arrives
	actHeal    action = "heal"    // the end of the three before
)

// errUnknown is for a node or action that does not exist.
var errUnknown = errors.New("no such node or action")

// do returns when the action has happened. What cannot happen in the node's present state,
// as a second kill, is an error.
func (s *supervisor) do(id string, a action) error {
	p := s.byID[id]
	if p == nil {
		return fmt.Errorf("%w: %q", errUnknown, id)
	}
	switch a {
	case actRestart:
		if err := p.stop(); err != nil {
			return err
		}
		return s.start(p)
	case actKill:
		return p.kill()
	case actPause, actResume:
		return p.pause(a == actPause)
	case actCut, actDeafen, actMute, actHeal:
		s.network.cut(id, a == actCut || a == actDeafen, a == actCut || a == actMute)
		return nil
	}
	return fmt.Errorf("%w: %q", errUnknown, a)
}

// facts is what the supervisor knows of a node: of its process and of its connections.
type facts struct {
	ID      string `json:"id"`
	Process string `json:"process"` // running, paused or down
	PID     int    `json:"pid"`     // 0 while it is down
	Deaf    bool   `json:"deaf"`
	Mute    bool   `json:"mute"`
}

func (s *supervisor) facts() []facts {
	var all []facts
	for _, p := range s.nodes {
		f := facts{ID: p.flags.ID}
		f.Process, f.PID = p.state()
		f.Deaf, f.Mute = s.network.isCut(p.flags.ID)
		all = append(all, f)
	}
	return all
}
