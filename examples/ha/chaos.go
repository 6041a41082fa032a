package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// chaos has one fault after another happen to the nodes, never to more than one voter at a
// time; the learner may have one beside it.
type chaos struct {
	s      *supervisor
	record *record
	rng    *rand.Rand
	say    func(string, ...any)
	worst  map[faultKind]time.Duration
}

// faultKind is what happened, and to whom.
type faultKind struct{ Name, Role string }

// fault is something that is done to a node for a while. With an empty undo it ends by itself.
type fault struct {
	name     string
	do, undo action
	shortest time.Duration
	longest  time.Duration
}

var faults = slices.DeleteFunc([]fault{
	{"kill -9", actKill, actRestart, 300 * time.Millisecond, 4 * time.Second},
	{"restart", actRestart, "", 0, 0},
	{"pause", actPause, actResume, 200 * time.Millisecond, 4 * time.Second},
	{"cut off", actCut, actHeal, time.Second, 5 * time.Second},
	{"deaf", actDeafen, actHeal, time.Second, 5 * time.Second},
	{"mute", actMute, actHeal, time.Second, 5 * time.Second},
}, func(f fault) bool { return f.do == actPause && !canPause })

// recoverTimeout bounds how long all nodes may take to be well after a fault has ended.
const recoverTimeout = 30 * time.Second

// run goes on until ctx ends, and leaves no fault behind.
func (c *chaos) run(ctx context.Context) error {
	for {
		pause := 300*time.Millisecond + time.Duration(c.rng.Int64N(int64(1500*time.Millisecond)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if err := c.round(); err != nil {
			return err
		}
	}
}

// round draws a fault, and everything about it before it happens, so that a seed has the
// same faults however long they take.
func (c *chaos) round() error {
	leads, voter := c.rng.IntN(2) == 0, c.s.nodes[c.rng.IntN(voters)]
	alone, beside := c.rng.IntN(6) == 0, c.rng.IntN(4) == 0
	main, second := c.draw(), c.draw()
	if leader := c.s.leader(); leads && leader != nil {
		voter = leader
	}
	learner := c.s.nodes[voters]
	began := time.Now()
	var kind faultKind
	var err error
	switch {
	case alone:
		kind = faultKind{main.name, "learner"}
		err = c.strike(main, learner, kind.Role)
	case beside:
		kind = faultKind{main.name, c.role(voter)}
		done := make(chan error, 1)
		go func() { done <- c.strike(second, learner, "learner") }()
		err = errors.Join(c.strike(main, voter, kind.Role), <-done)
	default:
		kind = faultKind{main.name, c.role(voter)}
		err = c.strike(main, voter, kind.Role)
	}
	if err != nil {
		return err
	}
	if err := c.s.waitWell(recoverTimeout); err != nil {
		return err
	}
	wait := c.record.longestWait(began, time.Now())
	c.worst[kind] = max(c.worst[kind], wait)
	c.say("all nodes are well again; the longest wait for an acknowledgement was %.2f s", wait.Seconds())
	return nil
}

// struck is a fault of a drawn duration.
type struck struct {
	fault
	lasts time.Duration
}

func (c *chaos) draw() struck {
	f := faults[c.rng.IntN(len(faults))]
	return struck{f, f.shortest + time.Duration(c.rng.Int64N(int64(f.longest-f.shortest)+1))}
}

func (c *chaos) role(p *process) string {
	if c.s.leader() == p {
		return "leader"
	}
	return "follower"
}

// strike does a fault to a node and ends it.
func (c *chaos) strike(f struck, p *process, role string) error {
	lasts := ""
	if f.undo != "" {
		lasts = fmt.Sprintf(" for %.1f s", f.lasts.Seconds())
	}
	c.say("%s: %s (%s)%s", p.flags.ID, f.name, role, lasts)
	if err := c.s.do(p.flags.ID, f.do); err != nil || f.undo == "" {
		return err
	}
	time.Sleep(f.lasts)
	return c.s.do(p.flags.ID, f.undo)
}
