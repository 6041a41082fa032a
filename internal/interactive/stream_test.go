package interactive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a transaction that does what a test says.
type scripted struct {
	run      func(ctx context.Context, st engine.Statement) engine.StepResult
	commit   engine.StepResult
	aborted  chan struct{}
	once     sync.Once
	rollback engine.StepResult
}

func (s *scripted) Run(ctx context.Context, st engine.Statement) engine.StepResult {
	return s.run(ctx, st)
}
func (s *scripted) Commit(context.Context, wire.RequestID, uint64) engine.StepResult { return s.commit }
func (s *scripted) Rollback(context.Context) engine.StepResult                       { return s.rollback }
func (s *scripted) Abort()                                                           { s.once.Do(func() { close(s.aborted) }) }

// world is a leader that serves transactions over real connections.
type world struct {
	t      *testing.T
	server *rpc.Server
	client *rpc.Client
	direct bool         // transactions go over direct connections
	wrote  atomic.Int64 // bytes on those
}

// each runs a test over the multiplexed connection and over direct ones.
func each(t *testing.T, f func(t *testing.T, direct bool)) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct %v", direct), func(t *testing.T) { f(t, direct) })
	}
}

func newWorld(t *testing.T, direct bool, begin func(context.Context, *wire.SessionRequest) (Tx, error)) *world {
	t.Helper()
	w := &world{t: t, server: rpc.NewServer(rpc.ServerConfig{}), direct: direct}
	w.server.Handle("tx", func(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
		return Serve(ctx, st, begin, toWire)
	})
	w.server.Handle("nothing", func(_ context.Context, _ wire.Hello, st *rpc.Stream) error {
		_, err := st.Recv()
		return errors.Join(err, st.SendLast(nil))
	})
	var wg sync.WaitGroup
	listen := func(purpose uint8, wrote *atomic.Int64) func(context.Context, string) (net.Conn, wire.Hello, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { w.server.ServeConn(c, wire.Hello{NodeID: "client", Purpose: purpose}) })
			}
		})
		t.Cleanup(func() { l.Close() })
		return func(ctx context.Context, _ string) (net.Conn, wire.Hello, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", l.Addr().String())
			return countedConn{c, wrote}, wire.Hello{NodeID: "leader"}, err
		}
	}
	t.Cleanup(wg.Wait)
	cfg := rpc.ClientConfig{Dial: listen(wire.PurposeRPC, new(atomic.Int64))}
	if direct {
		cfg.DialDirect = listen(wire.PurposeDirect, &w.wrote)
	}
	w.client = rpc.NewClient(cfg)
	t.Cleanup(func() {
		w.client.Close()
		w.server.Close()
	})
	return w
}

type countedConn struct {
	net.Conn
	wrote *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	c.wrote.Add(int64(len(b)))
	return c.Conn.Write(b)
}

func toWire(err error) *wire.Error {
	var e *wire.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, engine.ErrCanceled):
		return &wire.Error{Code: wire.ErrCanceled}
	}
	return &wire.Error{Code: wire.ErrInternal, Msg: err.Error()}
}

// stream opens a stream; a direct one is there once another has asked for it.
func (w *world) stream() *rpc.Stream {
	w.t.Helper()
	for by := time.Now().Add(5 * time.Second); w.direct && w.wrote.Load() == 0; {
		st, err := w.client.OpenDirect(w.t.Context(), w.t.Context(), "leader", "nothing")
		if err == nil {
			err = st.Send(nil)
		}
		if err == nil {
			_, err = st.Recv()
		}
		if err != nil || time.Now().After(by) {
			w.t.Fatalf("no direct connection: %v", err)
		}
		st.Done()
	}
	st, err := w.client.OpenDirect(context.Background(), context.Background(), "leader", "tx")
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

func (w *world) open(ctx context.Context) (*Remote, error) {
	w.t.Helper()
	return Begin(ctx, w.stream(), "leader", &wire.SessionRequest{DB: "db", Label: "test", Pre: wire.PreState{LastInsertID: 7}})
}

func ended(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: nothing happens", what)
	}
}

func TestWhatIsAskedIsCarriedOutInOrder(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{}), commit: engine.StepResult{Mark: wire.Mark{Term: 2, Index: 9}, Over: true}}
		var asked wire.SessionRequest
		w := newWorld(t, direct, func(_ context.Context, req *wire.SessionRequest) (Tx, error) { asked = *req; return tx, nil })
		tx.run = func(_ context.Context, st engine.Statement) engine.StepResult {
			if st.SQL == "fail" {
				return engine.StepResult{Err: &wire.Error{Code: wire.ErrSQL, Primary: 19}}
			}
			rows := &wire.Rows{Columns: []wire.Column{{Name: "a"}}, N: 1, Data: wire.AppendValue(nil, wire.Text(st.SQL))}
			return engine.StepResult{State: wire.PreState{LastInsertID: 8, Changes: 1}, Rows: rows}
		}
		r, err := w.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if asked.DB != "db" || asked.Label != "test" || asked.Pre.LastInsertID != 7 {
			t.Errorf("begun with %+v", asked)
		}
		res := r.Run(t.Context(), engine.Statement{Statement: wire.Statement{SQL: "one"}, WantRows: true})
		if res.Err != nil || res.State.LastInsertID != 8 || res.Rows == nil || res.Rows.N != 1 || res.Over {
			t.Errorf("got %+v", res)
		}
		if res := r.Run(t.Context(), engine.Statement{Statement: wire.Statement{SQL: "fail"}}); !isCode(res.Err, wire.ErrSQL) || res.Over {
			t.Errorf("got %+v", res)
		}
		if res := r.Commit(t.Context(), wire.RequestID{Origin: 1, Seq: 2}, 1); res.Err != nil || res.Mark.Index != 9 || !res.Over {
			t.Errorf("got %+v", res)
		}
		if res := r.Run(t.Context(), engine.Statement{}); res.Err == nil || !res.Over {
			t.Errorf("after its end: %+v", res)
		}
		ended(t, "the leader's end", tx.aborted)
	})
}

func TestABeginThatIsRefusedLeavesNoStream(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) {
			return nil, &wire.Error{Code: wire.ErrNotLeader}
		})
		if _, err := w.open(t.Context()); !isCode(err, wire.ErrNotLeader) {
			t.Errorf("got %v", err)
		}
	})
}

func TestABeginThatIsGivenUpEndsWhatItBegins(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		asked, release := make(chan struct{}), make(chan struct{})
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) {
			close(asked)
			<-release
			return tx, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if _, err := w.open(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		close(release)
		ended(t, "what was begun", tx.aborted)
	})
}

func TestCancelStopsTheStatementAndNotTheTransaction(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		tx.run = func(ctx context.Context, st engine.Statement) engine.StepResult {
			if st.SQL == "long" {
				<-ctx.Done()
				return engine.StepResult{Err: engine.ErrCanceled}
			}
			return engine.StepResult{}
		}
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return tx, nil })
		r, err := w.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if res := r.Run(ctx, engine.Statement{Statement: wire.Statement{SQL: "long"}}); !errors.Is(res.Err, context.DeadlineExceeded) || !errors.Is(res.Err, engine.ErrCanceled) || res.Over {
			t.Errorf("got %+v", res)
		}
		if res := r.Run(t.Context(), engine.Statement{Statement: wire.Statement{SQL: "short"}}); res.Err != nil {
			t.Errorf("got %+v", res)
		}
		r.Abort()
		ended(t, "the leader's end", tx.aborted)
	})
}

// A leader that does not answer: a statement ends the transaction, and of a commit it is
// not known what became of it.
func TestALeaderThatIsSilent(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		for _, commit := range []bool{false, true} {
			tx := &scripted{aborted: make(chan struct{})}
			release := make(chan struct{})
			tx.run = func(context.Context, engine.Statement) engine.StepResult {
				<-release
				return engine.StepResult{}
			}
			w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return silentCommit{tx, release}, nil })
			r, err := w.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			var res engine.StepResult
			if commit {
				res = r.Commit(ctx, wire.RequestID{Origin: 1, Seq: 1}, 1)
			} else {
				res = r.Run(ctx, engine.Statement{Statement: wire.Statement{SQL: "x"}})
			}
			if !errors.Is(res.Err, context.DeadlineExceeded) || !res.Over || commit != errors.Is(res.Err, engine.ErrUnknown) {
				t.Errorf("commit %v: got %+v", commit, res)
			}
			var over *engine.AbortedError
			if res := r.Run(t.Context(), engine.Statement{}); !errors.As(res.Err, &over) {
				t.Errorf("afterwards: %+v", res)
			}
			close(release)
			ended(t, "the leader's end", tx.aborted)
		}
	})
}

type silentCommit struct {
	*scripted
	release chan struct{}
}

func (s silentCommit) Commit(context.Context, wire.RequestID, uint64) engine.StepResult {
	<-s.release
	return engine.StepResult{Over: true}
}

func TestALeaderThatDisappears(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return tx, nil })
		r, err := w.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.server.Close()
		ended(t, "the leader's end", tx.aborted)
		var over *engine.AbortedError
		if res := r.Run(t.Context(), engine.Statement{}); !errors.As(res.Err, &over) || over.Reason != engine.AbortLeader || !res.Over || strings.Contains(res.Err.Error(), "unknown") {
			t.Errorf("got %+v", res)
		}
	})
}

// A client that disappears ends what runs for it, and the transaction.
func TestAClientThatDisappears(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		runs := make(chan struct{})
		tx.run = func(ctx context.Context, _ engine.Statement) engine.StepResult {
			close(runs)
			<-ctx.Done()
			return engine.StepResult{Err: engine.ErrCanceled}
		}
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return tx, nil })
		r, err := w.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		res := make(chan engine.StepResult, 1)
		go func() { res <- r.Run(t.Context(), engine.Statement{}) }()
		ended(t, "the statement", runs)
		r.Abort()
		ended(t, "the leader's end", tx.aborted)
		if res := <-res; res.Err == nil || !res.Over {
			t.Errorf("got %+v", res)
		}
	})
}

// A cancel that comes when its statement has been answered stops no other.
func TestACancelThatIsLateStopsNothing(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		tx.run = func(ctx context.Context, st engine.Statement) engine.StepResult {
			timer := time.NewTimer(st.Timeout) // which the script takes for its duration
			defer timer.Stop()
			select {
			case <-timer.C:
				return engine.StepResult{}
			case <-ctx.Done():
				return engine.StepResult{Err: engine.ErrCanceled}
			}
		}
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return tx, nil })
		st := w.stream()
		r, err := Begin(t.Context(), st, "leader", &wire.SessionRequest{})
		if err != nil {
			t.Fatal(err)
		}
		late := (&wire.SessionRequest{Kind: wire.SessionCancel}).Append(nil)
		for i := range 20 {
			req := &wire.SessionRequest{Kind: wire.SessionRun, Timeout: int64(i % 6)}
			if err := st.Send(late); err != nil {
				t.Fatal(err)
			}
			if res, err := r.exchange(req, func() {}); err != nil || res.Err != nil {
				t.Errorf("statement %d: %+v %v", i, res, err)
			}
		}
		r.Abort()
		ended(t, "the leader's end", tx.aborted)
	})
}

// A cancel follows what it is to stop, however early the context ends: the statement ends,
// and not the transaction.
func TestACancelDoesNotOvertakeItsStatement(t *testing.T) {
	each(t, func(t *testing.T, direct bool) {
		tx := &scripted{aborted: make(chan struct{})}
		tx.run = func(ctx context.Context, st engine.Statement) engine.StepResult {
			<-ctx.Done()
			return engine.StepResult{Err: engine.ErrCanceled}
		}
		w := newWorld(t, direct, func(context.Context, *wire.SessionRequest) (Tx, error) { return tx, nil })
		r, err := w.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 100 {
			if res := r.Run(ctx, engine.Statement{}); !errors.Is(res.Err, engine.ErrCanceled) || res.Over {
				t.Fatalf("statement %d: %+v", i, res)
			}
		}
		r.Abort()
		ended(t, "the leader's end", tx.aborted)
	})
}

// A cancel that is read while its own statement waits to begin is for that one.
func TestACancelReadAheadIsForTheStatementBeforeIt(t *testing.T) {
	message := func(kind uint8) []byte { return (&wire.SessionRequest{Kind: kind}).Append(nil) }
	var r running
	first := r.begin(t.Context())
	if r.cancel(message(wire.SessionRun)) || !r.cancel(message(wire.SessionCancel)) {
		t.Error("what is no cancel is taken, or what is one is not")
	}
	if first.Err() != nil {
		t.Error("the statement before was stopped")
	}
	second := r.begin(t.Context())
	if second.Err() == nil {
		t.Error("its own was not")
	}
	if third := r.begin(t.Context()); third.Err() != nil {
		t.Error("so was the next")
	}
}
