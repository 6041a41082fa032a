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
	s         *supervisor
	record    *record
	rng       *rand.Rand
	say       func(string, ...any)
	until     time.Time       // when the writing ends
	interrupt <-chan struct{} // closed when all is to end before that
	worst     map[faultKind]time.Duration
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

const (
	shortestPause = 300 * time.Millisecond
	longestPause  = 1800 * time.Millisecond
	// recoverTimeout bounds how long all nodes may take to be well after a fault has ended.
	recoverTimeout = 30 * time.Second
)

// run goes on until ctx ends, and leaves no fault behind.
func (c *chaos) run(ctx context.Context) error {
	for {
		p := draw(c.rng)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.pause):
		}
		if err := c.round(p); err != nil {
			return err
		}
	}
}

// plan is all that chance decides about a round, drawn before anything happens: so a seed has
// the same plans, however long their rounds take.
type plan struct {
	pause        time.Duration // before it
	leader       bool          // it happens to whoever leads then
	voter        int           // or to this one
	alone        bool          // or to the learner
	beside       bool          // something happens to the learner at the same time
	main, second struck
}

// struck is a fault of a drawn duration.
type struck struct {
	fault
	lasts time.Duration
}

func draw(rng *rand.Rand) plan {
	fault := func() struck {
		f := faults[rng.IntN(len(faults))]
		return struck{f, f.shortest + time.Duration(rng.Int64N(int64(f.longest-f.shortest)+1))}
	}
	return plan{
		pause: shortestPause + time.Duration(rng.Int64N(int64(longestPause-shortestPause))), leader: rng.IntN(2) == 0, voter: rng.IntN(voters),
		alone: rng.IntN(6) == 0, beside: rng.IntN(4) == 0, main: fault(), second: fault(),
	}
}

// round has a plan happen, and waits until all nodes are well again.
func (c *chaos) round(p plan) error {
	learner, target := c.s.nodes[voters], c.s.nodes[p.voter]
	if leader := c.s.leader(); p.leader && leader != nil {
		target = leader
	}
	if p.alone {
		target = learner
	}
	began, kind := time.Now(), faultKind{p.main.name, c.role(target)}
	beside := make(chan error, 1)
	if p.beside && !p.alone {
		go func() { beside <- c.strike(p.second, learner, c.role(learner)) }()
	} else {
		beside <- nil
	}
	if err := errors.Join(c.strike(p.main, target, kind.Role), <-beside); err != nil {
		return err
	}
	select {
	case <-c.interrupt:
		return nil
	default:
	}
	if err := c.s.waitWell(recoverTimeout); err != nil {
		return err
	}
	wait := c.record.longestWait(began, earlier(time.Now(), c.until))
	c.worst[kind] = max(c.worst[kind], wait)
	c.say("all nodes are well again; the longest wait for an acknowledgement was %.2f s", wait.Seconds())
	return nil
}

func (c *chaos) role(p *process) string {
	switch {
	case p.flags.Learner:
		return roleLearner
	case c.s.leader() == p:
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
	select {
	case <-time.After(f.lasts):
	case <-c.interrupt:
	}
	return c.s.do(p.flags.ID, f.undo)
}
