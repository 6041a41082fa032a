package main

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// questionTimeout bounds a question of the supervisor to a node.
const questionTimeout = 2 * time.Second

// contentTimeout bounds the question for all that a node holds.
const contentTimeout = 30 * time.Second

// question asks a node something over HTTP.
func (s *supervisor) question(p *process, path string, into any) error {
	return s.questionWithin(questionTimeout, p, path, into)
}

func (s *supervisor) contentOf(p *process) (c content, err error) {
	err = s.questionWithin(contentTimeout, p, "/content", &c)
	return c, err
}

func (s *supervisor) questionWithin(timeout time.Duration, p *process, path string, into any) error {
	address := p.address()
	if address == "" {
		return fmt.Errorf("%s does not run", p.flags.ID)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return ask(ctx, http.MethodGet, "http://"+address+path, s.token, nil, into)
}

// leader returns the node that leads and takes writes, nil if there is none.
func (s *supervisor) leader() *process {
	var found *process
	var term uint64
	for _, p := range s.nodes {
		var st nodeStatus
		if s.question(p, "/status", &st) == nil && st.Ready && st.Term > term {
			found, term = p, st.Term
		}
	}
	return found
}

// well reports why not all nodes follow one leader, with all voters voting and everybody
// having applied what the leader had when it was asked.
func (s *supervisor) well() error {
	leader := s.leader()
	if leader == nil {
		return fmt.Errorf("no node leads")
	}
	var l nodeStatus
	if err := s.question(leader, "/status", &l); err != nil {
		return err
	}
	for _, p := range s.nodes {
		var st nodeStatus
		if err := s.question(p, "/status", &st); err != nil {
			return err
		}
		switch {
		case st.Halted != "":
			return fmt.Errorf("%s has stopped: %s", st.ID, st.Halted)
		case st.Leader != l.ID || st.Term != l.Term:
			return fmt.Errorf("%s follows %q in term %d, not %s in term %d", st.ID, st.Leader, st.Term, l.ID, l.Term)
		case st.Applied < l.Applied:
			return fmt.Errorf("%s has applied %d of %d", st.ID, st.Applied, l.Applied)
		case (st.Role == roleLearner) != p.flags.Learner:
			return fmt.Errorf("%s is a %s", st.ID, st.Role)
		}
	}
	return nil
}

// waitWell waits until all nodes are well.
func (s *supervisor) waitWell(most time.Duration) error {
	return until(most, "all nodes well", s.well)
}

// until waits for a condition, which tells what is missing by an error.
func until(most time.Duration, what string, missing func() error) error {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := missing()
		if err == nil {
			return nil
		}
		if time.Since(began) > most {
			return fmt.Errorf("not %s after %v: %w", what, most, err)
		}
	}
}
