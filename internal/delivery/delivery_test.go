package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

var (
	errClosed     = errors.New("colmena: closed")
	errNoLeader   = errors.New("colmena: no leader")
	errHalted     = errors.New("colmena: halted")
	errNotApplied = errors.New("colmena: not applied")
	errUnknown    = errors.New("colmena: outcome unknown")
	errSQL        = errors.New("colmena: constraint failed")
)

type outcome struct {
	msg string
	is  []error
}

func (e *outcome) Error() string   { return e.msg }
func (e *outcome) Unwrap() []error { return e.is }

// leaders is who leads, and state what the cluster remembers: a replicated log that answers.
type leaders struct {
	done chan struct{}

	mu      sync.Mutex // guards what follows
	id      string     // "" none; "self" is this node
	changed chan struct{}
	applied map[wire.RequestID]int // how often
	origins uint64
	forgets bool // requests are too old to tell
	// fault is what becomes of an attempt: whether the unit is applied, and the error of the answer.
	fault func(try int, leader string) (apply bool, err error)
	tries int
}

func (l *leaders) Deadline() time.Time { return time.Now().Add(time.Second) }

func (l *leaders) Watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *leaders) set(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leaders) Await(ctx context.Context, by time.Time) (string, bool, error) {
	for {
		watch := l.Watch()
		l.mu.Lock()
		id := l.id
		l.mu.Unlock()
		if id != "" {
			return id, id == "self", nil
		}
		if err := l.Pause(ctx, watch, by); err != nil {
			return "", false, err
		}
	}
}

func (l *leaders) Pause(ctx context.Context, watch <-chan struct{}, by time.Time) error {
	left := time.Until(by)
	if left <= 0 {
		return errNoLeader
	}
	select {
	case <-watch:
	case <-time.After(min(left, 100*time.Millisecond)):
	case <-l.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (l *leaders) Ask(ctx context.Context, by time.Time, try func(string, bool) bool) error {
	for {
		watch := l.Watch()
		id, local, err := l.Await(ctx, by)
		if err != nil {
			return err
		}
		if !try(id, local) {
			return nil
		}
		if err := l.Pause(ctx, watch, by); err != nil {
			return err
		}
	}
}

// run is a leader's part: an ID that is known is answered from memory.
func (l *leaders) run(ctx context.Context, leader string, u wire.Unit) (res wire.UnitResult, maybe bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries++
	apply, fault := true, error(nil)
	if l.fault != nil {
		apply, fault = l.fault(l.tries, leader)
	}
	if isCode(fault, wire.ErrSQL) && (u.Resolve || l.applied[u.ID] > 0) {
		fault = nil // no statement runs: there is none, or the unit's result is found in memory
	}
	maybe = errors.Is(fault, engine.ErrUnknown) || errors.Is(fault, rpc.ErrInterrupted) || isCode(fault, wire.ErrOutcomeUnknown)
	switch {
	case fault != nil && !apply:
		res.Result.LastInsertID = failedRowID // what SQLite remembers of a statement that failed
		return res, maybe, fault
	case u.ID != (wire.RequestID{}) && l.forgets:
		l.forgets = false
		return res, false, engine.ErrExpired
	case u.ID == (wire.RequestID{}): // of the system database
		l.origins++
		res.Result.LastInsertID = int64(l.origins)
		return res, maybe, fault
	case u.Resolve && l.applied[u.ID] == 0:
		res.Result.RowsAffected = -1 // as the engine's fence
		return res, false, engine.ErrNotFound
	case l.applied[u.ID] == 0:
		l.applied[u.ID] = 1
	}
	res.Mark = wire.Mark{Term: 1, Index: u.ID.Seq}
	return res, maybe, fault
}

const failedRowID = 4711

func (l *leaders) count() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.applied)
}

func service(bound time.Duration) (*Service, *leaders) {
	l := &leaders{id: "b", done: make(chan struct{}), changed: make(chan struct{}), applied: map[wire.RequestID]int{}}
	maker := func(kind error, ending string) func(error, string, ...any) error {
		return func(cause error, format string, args ...any) error {
			return &outcome{"colmena: " + fmt.Sprintf(format, args...) + ending, []error{kind, cause}}
		}
	}
	user := func(err error) error {
		var w *wire.Error
		var over *engine.AbortedError
		switch {
		case errors.As(err, &w) && w.Code == wire.ErrSQL:
			return errSQL
		case errors.As(err, &w) && w.Code == wire.ErrNotLeader:
			return &outcome{"colmena: not the leader", []error{errNoLeader, errNotApplied}}
		case errors.As(err, &over):
			return &outcome{"colmena: aborted", []error{errNotApplied}}
		}
		return err
	}
	return New(Config{
		Leaders: l, Done: l.done, Bound: bound, Halted: func() error { return nil },
		Here: func(ctx context.Context, _ string, u wire.Unit) (wire.UnitResult, bool, error) {
			return l.run(ctx, "self", u)
		},
		There: func(ctx context.Context, leader, _ string, u wire.Unit) (wire.UnitResult, bool, error) {
			return l.run(ctx, leader, u)
		},
		Register:   func() wire.Unit { return wire.Unit{Statements: []wire.Statement{{SQL: "register"}}} },
		RegisterIn: "system",
		Errors: Errors{
			Closed: errClosed, NoLeader: errNoLeader, Halted: errHalted, NotApplied: errNotApplied, Unknown: errUnknown,
			Refused: maker(errNotApplied, "; the write was not applied"), Lost: maker(errUnknown, UnknownEnding),
			User: user, Statement: user, TooLarge: func(err error) error { return err },
			Leaderless: func(_ context.Context, err error) error { return fmt.Errorf("%w: %w", errNoLeader, err) },
			ToWire: func(err error) *wire.Error {
				var w *wire.Error
				if errors.As(err, &w) {
					return w
				}
				if errors.Is(err, engine.ErrNotFound) {
					return &wire.Error{Code: wire.ErrNotFound}
				}
				var over *engine.AbortedError
				if errors.As(err, &over) {
					return &wire.Error{Code: wire.ErrTxAborted}
				}
				return &wire.Error{Code: wire.ErrInternal}
			},
		},
	}), l
}

func insert() wire.Unit {
	return wire.Unit{Statements: []wire.Statement{{SQL: "INSERT", Args: wire.NewArgs(0).Args()}}}
}

// is checks what an error says: kinds that it is, and those it is not.
func is(t *testing.T, err error, want, not []error) {
	t.Helper()
	for _, e := range want {
		if !errors.Is(err, e) {
			t.Errorf("%v is not: %v", err, e)
		}
	}
	for _, e := range not {
		if errors.Is(err, e) {
			t.Errorf("%v is: %v", err, e)
		}
	}
}

func codeError(code wire.ErrorCode) error { return &wire.Error{Code: code, Msg: "over there"} }

func TestWriteGoesOnUntilItIsDecided(t *testing.T) {
	lost := fmt.Errorf("%w: the stream ended", rpc.ErrInterrupted)
	for name, faults := range map[string][]struct {
		apply bool
		err   error
	}{
		"not delivered":            {{false, rpc.ErrNotDelivered}},
		"no leader":                {{false, codeError(wire.ErrNotLeader)}, {false, engine.ErrNotLeading}},
		"closes":                   {{false, codeError(wire.ErrClosed)}, {false, codeError(wire.ErrHalted)}},
		"answer lost, applied":     {{true, lost}, {false, codeError(wire.ErrNotLeader)}},
		"answer lost, not applied": {{false, lost}, {false, lost}},
		"unknown to the leader":    {{true, engine.ErrUnknown}, {true, codeError(wire.ErrOutcomeUnknown)}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, l := service(0)
			l.fault = func(try int, _ string) (bool, error) {
				if i := try - 2; i >= 0 && i < len(faults) { // the first registers
					return faults[i].apply, faults[i].err
				}
				return true, nil
			}
			res, err := s.Write(t.Context(), "db", insert())
			if err != nil || res.Mark.Index != 1 || l.count() != 1 || l.tries != len(faults)+2 {
				t.Errorf("%s: %v, %v; %d applied in %d tries", name, res.Mark, err, l.count(), l.tries)
			}
		})
	}
}

func TestDecidedErrorIsNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		for _, before := range []error{nil, rpc.ErrInterrupted} { // an error of running the unit says that no earlier attempt was applied
			l.tries = 0
			l.fault = func(int, string) (bool, error) {
				if before != nil {
					err := before
					before = nil
					return false, err
				}
				return false, codeError(wire.ErrSQL)
			}
			s.origin(t)
			res, err := s.Write(t.Context(), "db", insert())
			is(t, err, []error{errSQL}, []error{errUnknown})
			if res.Result.Outcome != (wire.Outcome{LastInsertID: failedRowID}) {
				t.Errorf("the connection is told %+v, which is not of the statement", res.Result.Outcome)
			}
		}
	})
}

// A write that has waited for a transaction for too long is told so, on the leader as
// elsewhere, unless an earlier attempt may have been applied: then it goes on until it knows.
func TestWriteThatWaitedForATransaction(t *testing.T) {
	late := &engine.AbortedError{Reason: engine.AbortWait, Cause: context.DeadlineExceeded}
	for name, waited := range map[string]error{"here": late, "there": codeError(wire.ErrTxAborted)} {
		synctest.Test(t, func(t *testing.T) {
			s, l := service(0)
			s.origin(t)
			l.fault = func(try int, _ string) (bool, error) {
				if try == 1 {
					return false, waited
				}
				return true, nil
			}
			if _, err := s.Write(t.Context(), "db", insert()); err == nil || l.tries != 1 || errors.Is(err, errUnknown) {
				t.Errorf("%s: %v in %d tries", name, err, l.tries)
			}
			s.origin(t)
			l.fault = func(try int, _ string) (bool, error) {
				switch try {
				case 1:
					return true, rpc.ErrInterrupted
				case 2:
					return false, waited
				}
				return true, nil
			}
			if _, err := s.Write(t.Context(), "db", insert()); err != nil || l.count() != 1 {
				t.Errorf("%s, sent before: %v; %d applied", name, err, l.count())
			}
		})
	}
}

// origin registers, whatever the fault, so that a test counts tries of its write alone.
func (s *Service) origin(t *testing.T) uint64 {
	t.Helper()
	l := s.cfg.Leaders.(*leaders)
	l.mu.Lock()
	fault := l.fault
	l.fault = nil
	l.mu.Unlock()
	id, _, err := s.requests.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.requests.End(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault, l.tries = fault, 0
	return id.Origin
}

// After an attempt that may have been applied only an error of running the unit decides.
func TestErrorThatJudgesNothingLeavesTheOutcomeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		s.origin(t)
		l.fault = func(try int, _ string) (bool, error) {
			if try == 1 {
				return true, rpc.ErrInterrupted
			}
			return false, codeError(wire.ErrTooLarge)
		}
		_, err := s.Write(t.Context(), "db", insert())
		is(t, err, []error{errUnknown}, []error{errNotApplied})
	})
}

func TestWhatEndsAWriteSaysWhetherItWasSent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault error
		cause error // of the end
		kind  error
	}{
		{"never delivered, context ends", rpc.ErrNotDelivered, context.DeadlineExceeded, errNotApplied},
		{"sent, context ends", rpc.ErrInterrupted, context.DeadlineExceeded, errUnknown},
		{"never delivered, node closes", rpc.ErrNotDelivered, errClosed, errNotApplied},
		{"sent, node closes", rpc.ErrInterrupted, errClosed, errUnknown},
		{"never delivered, no leader", rpc.ErrNotDelivered, errNoLeader, errNotApplied},
		{"sent, no leader", rpc.ErrInterrupted, errNoLeader, errUnknown},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, l := service(0)
			s.origin(t)
			l.fault = func(int, string) (bool, error) { return false, tt.fault }
			ctx := t.Context()
			switch tt.cause {
			case context.DeadlineExceeded:
				short, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
				defer cancel()
				ctx = short
			case errClosed:
				time.AfterFunc(150*time.Millisecond, func() { close(l.done) })
			default:
				time.AfterFunc(150*time.Millisecond, func() { l.set("") })
			}
			_, err := s.Write(ctx, "db", insert())
			other := errUnknown
			if tt.kind == errUnknown {
				other = errNotApplied
			}
			t.Log(tt.name, err)
			is(t, err, []error{tt.kind, tt.cause}, []error{other})
		})
	}
}

// The bound counts from the first attempt that may have arrived.
func TestBoundCountsFromTheFirstAttemptThatMayHaveArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(3 * time.Second)
		s.origin(t)
		began := time.Now()
		l.fault = func(int, string) (bool, error) {
			if time.Since(began) < 800*time.Millisecond {
				return false, rpc.ErrNotDelivered
			}
			return false, rpc.ErrInterrupted
		}
		_, err := s.Write(t.Context(), "db", insert())
		is(t, err, []error{errUnknown, context.DeadlineExceeded}, []error{errNotApplied})
		if d := time.Since(began); d < 3700*time.Millisecond || d > 3900*time.Millisecond {
			t.Errorf("it ended after %v", d)
		}
	})
}

func TestForgottenOriginIsReplacedUnlessTheWriteWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		s.origin(t)
		l.forgets = true
		if _, err := s.Write(t.Context(), "db", insert()); err != nil || l.origins != 2 || l.count() != 1 {
			t.Errorf("%v, %d origins, %d applied", err, l.origins, l.count())
		}
		l.tries, l.forgets = 0, true
		l.fault = func(try int, _ string) (bool, error) {
			if try == 1 {
				return false, rpc.ErrInterrupted
			}
			return true, nil
		}
		_, err := s.Write(t.Context(), "db", insert())
		is(t, err, []error{errUnknown}, []error{errNotApplied})
	})
}

// A write that was not sent because its process got no number was not applied, whatever became of the request for the number.
func TestFailedRegistrationIsNotApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		l.fault = func(int, string) (bool, error) { return false, rpc.ErrInterrupted }
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		_, err := s.Write(ctx, "db", insert())
		is(t, err, []error{errNotApplied, context.DeadlineExceeded}, []error{errUnknown})
		if strings.Contains(err.Error(), UnknownEnding) {
			t.Error(err)
		}
		tx := &transaction{}
		_, over, err := s.Commit(ctx, "db", tx)
		is(t, err, []error{errNotApplied}, []error{errUnknown})
		if !over || !tx.aborted {
			t.Errorf("over %v, aborted %v", over, tx.aborted)
		}
	})
}

// Whatever the way does to attempts and answers, a write that returns nil was applied once, and one that was not applied says so.
func TestRandomFaultsNeverDoubleNorLose(t *testing.T) {
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("COLMENA_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("COLMENA_SEED=%d", seed)
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s, l := service(0)
		s.origin(t)
		faults := []error{nil, nil, rpc.ErrNotDelivered, rpc.ErrInterrupted, engine.ErrUnknown, engine.ErrNotLeading, codeError(wire.ErrOutcomeUnknown),
			codeError(wire.ErrNotLeader), codeError(wire.ErrClosed), codeError(wire.ErrHalted), codeError(wire.ErrSQL), engine.ErrExpired}
		l.fault = func(int, string) (bool, error) {
			err := faults[rnd.IntN(len(faults))]
			maybe := errors.Is(err, rpc.ErrInterrupted) || errors.Is(err, engine.ErrUnknown) || isCode(err, wire.ErrOutcomeUnknown)
			return err == nil || maybe && rnd.IntN(2) == 0, err
		}
		for range 300 {
			before := l.count()
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(600))*time.Millisecond)
			_, err := s.Write(ctx, "db", insert())
			cancel()
			switch applied := l.count() - before; {
			case err == nil && applied != 1, errors.Is(err, errNotApplied) && applied != 0, errors.Is(err, errSQL) && applied != 0, applied > 1:
				t.Fatalf("%v: applied %d times", err, applied)
			case err != nil && !errors.Is(err, errNotApplied) && !errors.Is(err, errUnknown) && !errors.Is(err, errSQL):
				t.Fatalf("it says nothing of the outcome: %v", err)
			}
		}
	})
}

type transaction struct {
	results []engine.StepResult
	aborted bool
}

func (x *transaction) Abort() { x.aborted = true }

func (x *transaction) Commit(context.Context, wire.RequestID, uint64) engine.StepResult {
	r := x.results[0]
	x.results = x.results[1:]
	return r
}

func TestLostAnswerOfACommitIsLookedUp(t *testing.T) {
	unknown := engine.StepResult{Err: fmt.Errorf("%w: node b has not answered", engine.ErrUnknown), Over: true}
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		origin := s.origin(t)
		next := wire.RequestID{Origin: origin, Seq: 2}
		l.applied[next] = 1
		l.fault = func(try int, _ string) (bool, error) {
			if try < 3 {
				return false, codeError(wire.ErrNotLeader)
			}
			return true, nil
		}
		if mark, over, err := s.Commit(t.Context(), "db", &transaction{results: []engine.StepResult{unknown}}); err != nil || !over || mark.Index != 2 {
			t.Errorf("applied: %v, %v, %v", mark, over, err)
		}
		_, over, err := s.Commit(t.Context(), "db", &transaction{results: []engine.StepResult{unknown}})
		if !over {
			t.Error("not over")
		}
		is(t, err, []error{errNotApplied}, []error{errUnknown})
		// A constraint that keeps it open, and an origin that was forgotten.
		open := engine.StepResult{Err: codeError(wire.ErrSQL)}
		if _, over, err := s.Commit(t.Context(), "db", &transaction{results: []engine.StepResult{{Err: engine.ErrExpired}, open}}); over || !errors.Is(err, errSQL) {
			t.Errorf("%v, %v", over, err)
		}
	})
}

func TestTransactionIsBegunWhereverTheLeaderIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := service(0)
		var asked []string
		begin := func(answers ...error) error {
			asked = nil
			return s.Begin(t.Context(), func(leader string, local bool) error {
				asked = append(asked, leader)
				err := answers[min(len(asked), len(answers))-1]
				if errors.Is(err, rpc.ErrNotDelivered) {
					l.set("self")
				}
				return err
			})
		}
		if err := begin(codeError(wire.ErrNotLeader), rpc.ErrNotDelivered, nil); err != nil || !slices.Equal(asked, []string{"b", "b", "self"}) {
			t.Errorf("%q, %v", asked, err)
		}
		is(t, begin(codeError(wire.ErrSQL)), []error{errSQL}, []error{errNotApplied})
		if len(asked) != 1 {
			t.Errorf("asked %q", asked)
		}
		is(t, begin(engine.ErrNotLeading), []error{errNotApplied, errNoLeader, engine.ErrNotLeading}, []error{errUnknown})
		time.AfterFunc(time.Millisecond, func() { close(l.done) })
		is(t, begin(engine.ErrNotLeading), []error{errNotApplied, errClosed}, []error{errUnknown})
	})
}

// Whatever keeps the leaders from telling what became of a commit, it may have been applied, and must not look safe to repeat.
func TestCommitThatCannotBeLookedUpIsUnknown(t *testing.T) {
	for _, why := range []error{codeError(wire.ErrOutcomeUnknown), fmt.Errorf("%w: node b has not answered", engine.ErrUnknown)} {
		for _, fault := range []error{codeError(wire.ErrNotLeader), codeError(wire.ErrClosed), codeError(wire.ErrTooLarge), engine.ErrNotLeading, engine.ErrExpired,
			rpc.ErrNotDelivered, rpc.ErrInterrupted} {
			for _, within := range []time.Duration{300 * time.Millisecond, time.Minute} {
				synctest.Test(t, func(t *testing.T) {
					s, l := service(0)
					s.origin(t)
					l.fault = func(int, string) (bool, error) { return false, fault }
					time.AfterFunc(2*time.Second, func() { l.set("") })
					ctx, cancel := context.WithTimeout(t.Context(), within)
					defer cancel()
					_, over, err := s.Commit(ctx, "db", &transaction{results: []engine.StepResult{{Err: why, Over: true}}})
					if !over {
						t.Errorf("%v, then %v: not over", why, fault)
					}
					is(t, err, []error{errUnknown}, []error{errNotApplied})
					if strings.Count(err.Error(), UnknownEnding) != 1 || strings.Count(err.Error(), "colmena: ") > 3 {
						t.Error(err)
					}
				})
			}
		}
	}
}
