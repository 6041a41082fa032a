package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server, a client and the TCP connections between them.
type world struct {
	srv    *Server
	client *Client
	l      net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // the client's
	dials atomic.Int32
	fail  atomic.Bool // dials fail
	wrap  func(net.Conn) net.Conn
}

func newWorld(t testing.TB, cfg ServerConfig, handlers map[string]Handler) *world {
	t.Helper()
	w := &world{srv: NewServer(cfg)}
	w.srv.Handle("echo", func(_ context.Context, _ wire.Hello, st *Stream) error {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		return st.Send(m)
	})
	for name, h := range handlers {
		w.srv.Handle(name, h)
	}
	var err error
	if w.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			conn, err := w.l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.srv.ServeConn(conn, wire.Hello{NodeID: "client"}) })
		}
	})
	w.client = NewClient(ClientConfig{Dial: w.dial})
	t.Cleanup(func() {
		w.client.Close()
		w.l.Close()
		w.srv.Close()
		w.wg.Wait()
	})
	return w
}

func (w *world) dial(ctx context.Context, _ string) (net.Conn, wire.Hello, error) {
	w.dials.Add(1)
	if w.fail.Load() {
		return nil, wire.Hello{}, errors.New("nobody there")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", w.l.Addr().String())
	if err != nil {
		return nil, wire.Hello{}, err
	}
	if w.wrap != nil {
		conn = w.wrap(conn)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, conn)
	return conn, wire.Hello{NodeID: "n"}, nil
}

func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func waitFor[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}

func TestCallRoundTrips(t *testing.T) {
	w := newWorld(t, ServerConfig{}, nil)
	for _, n := range []int{0, 1, 100, stepBytes - 100, stepBytes, 3*stepBytes + 7, 5 << 20} {
		req := bytes.Repeat([]byte{byte(n)}, n)
		resp, err := w.client.Call(within(t, 10*time.Second), "n", "echo", req)
		if err != nil || !bytes.Equal(resp, req) {
			t.Fatalf("%d bytes: %d back, %v", n, len(resp), err)
		}
	}
	if _, err := w.client.Call(within(t, time.Second), "n", "echo", nil); err != nil {
		t.Fatalf("nil request: %v", err)
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

func TestErrorsTravel(t *testing.T) {
	full := &wire.Error{Code: wire.ErrSQL, Primary: 19, Extended: 2067, Offset: -1, Msg: "UNIQUE", SQL: "INSERT", Detail: "d"}
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"sql":   func(context.Context, wire.Hello, *Stream) error { return fmt.Errorf("wrapped: %w", full) },
		"plain": func(context.Context, wire.Hello, *Stream) error { return errors.New(strings.Repeat("x", 1<<20)) },
		"panic": func(context.Context, wire.Hello, *Stream) error { panic("boom") },
		"mute":  func(context.Context, wire.Hello, *Stream) error { return nil },
	})
	call := func(method string) *wire.Error {
		t.Helper()
		// Larger than a window: a handler that does not read must not block the caller.
		_, err := w.client.Call(within(t, 5*time.Second), "n", method, make([]byte, 3*windowBytes))
		e, ok := errors.AsType[*wire.Error](err)
		if !ok {
			t.Fatalf("%s: %v", method, err)
		}
		return e
	}
	if e := call("sql"); *e != *full {
		t.Errorf("got %+v", e)
	}
	if e := call("plain"); e.Code != wire.ErrInternal || len(e.Msg) > msgBytesMax {
		t.Errorf("got %v with %d bytes", e.Code, len(e.Msg))
	}
	if e := call("panic"); e.Code != wire.ErrPanic || !strings.Contains(e.Msg, "boom") {
		t.Errorf("got %v", e)
	}
	if e := call("nothing"); e.Code != wire.ErrNoHandler {
		t.Errorf("got %v", e)
	}
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "mute", nil); !errors.Is(err, ErrInterrupted) {
		t.Errorf("no response: %v", err)
	}
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", []byte("alive")); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

// TestCancellationReachesHandler: close, context, deadline and a lost connection
// all end the handler's context, whether it receives or not.
func TestCancellationReachesHandler(t *testing.T) {
	ended := make(chan error, 1)
	started := make(chan time.Duration, 1)
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"wait": func(ctx context.Context, _ wire.Hello, _ *Stream) error {
			d, _ := ctx.Deadline()
			started <- time.Until(d)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
		"recv": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			started <- 0
			_, err := st.Recv()
			ended <- err
			return err
		},
	})
	ways := map[string]func(*Stream, context.CancelFunc){
		"close":      func(st *Stream, _ context.CancelFunc) { st.Close() },
		"cancel":     func(_ *Stream, cancel context.CancelFunc) { cancel() },
		"disconnect": func(*Stream, context.CancelFunc) { w.cut() },
	}
	for _, method := range []string{"wait", "recv"} {
		for name, end := range ways {
			ctx, cancel := context.WithCancel(t.Context())
			st, err := w.client.Open(ctx, "n", method)
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "start", started)
			end(st, cancel)
			if err := waitFor(t, method+" after "+name, ended); err == nil {
				t.Errorf("%s after %s: no error", method, name)
			}
			if _, err := st.Recv(); !errors.Is(err, ErrInterrupted) {
				t.Errorf("%s after %s: caller got %v", method, name, err)
			}
			st.Close()
			cancel()
		}
	}
	began := time.Now()
	_, err := w.client.Call(within(t, 300*time.Millisecond), "n", "wait", nil)
	if left := waitFor(t, "start", started); left <= 0 || left > 300*time.Millisecond {
		t.Errorf("the deadline did not travel: %v left", left)
	}
	if err := waitFor(t, "deadline", ended); err == nil {
		t.Error("deadline: no error")
	}
	if e, ok := errors.AsType[*wire.Error](err); !(ok && e.Code == wire.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("caller got %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestSendUnblocksWhenContextEnds(t *testing.T) {
	hold := make(chan struct{})
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"deaf": func(ctx context.Context, _ wire.Hello, _ *Stream) error { <-hold; return nil },
	})
	defer close(hold)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	st, err := w.client.Open(ctx, "n", "deaf")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	began := time.Now()
	for err == nil {
		err = st.Send(make([]byte, 1<<20))
	}
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrInterrupted) || time.Since(began) > 3*time.Second {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	if err := st.Send(nil); err == nil {
		t.Error("Send after a cut message")
	}
	// The other streams of the connection live on.
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", []byte("x")); err != nil {
		t.Error(err)
	}
}

func TestDialsAreSharedAndPaced(t *testing.T) {
	w := newWorld(t, ServerConfig{}, nil)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := w.client.Call(context.Background(), "n", "echo", []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d dials for 50 calls", n)
	}
	w.client.Drop("n")
	w.fail.Store(true)
	w.dials.Store(0)
	ctx := within(t, 300*time.Millisecond)
	for ctx.Err() == nil {
		if _, err := w.client.Open(ctx, "n", "echo"); err == nil {
			t.Fatal("opened")
		}
	}
	if n := w.dials.Load(); n < 3 || n > 12 {
		t.Errorf("%d dials in 300 ms", n)
	}
	w.fail.Store(false)
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", nil); err != nil {
		t.Error(err)
	}
}

func TestStreamCarriesMessagesBothWays(t *testing.T) {
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"upper": func(ctx context.Context, peer wire.Hello, st *Stream) error {
			if peer.NodeID != "client" {
				return errors.New("who?")
			}
			buf := make([]byte, 0, 64)
			for {
				m, err := st.RecvInto(buf)
				if errors.Is(err, io.EOF) {
					return st.Send([]byte("bye"))
				}
				if err != nil {
					return err
				}
				if err := st.Send(bytes.ToUpper(m)); err != nil {
					return err
				}
			}
		},
	})
	st, err := w.client.Open(within(t, 10*time.Second), "n", "upper")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	const n = 200
	go func() {
		for i := range n {
			if st.Send(fmt.Appendf(nil, "m%d%s", i, strings.Repeat("x", i*20))) != nil {
				return
			}
		}
		st.CloseSend()
	}()
	var buf []byte
	for i := range n {
		buf, err = st.RecvInto(buf)
		if want := fmt.Sprintf("M%d%s", i, strings.Repeat("X", i*20)); err != nil || string(buf) != want {
			t.Fatalf("message %d: %q %v", i, buf, err)
		}
	}
	if m, err := st.Recv(); err != nil || string(m) != "bye" {
		t.Fatalf("%q %v", m, err)
	}
	for range 2 {
		if _, err := st.Recv(); err != io.EOF {
			t.Fatalf("end: %v", err)
		}
	}
	if err := st.Send(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after CloseSend: %v", err)
	}
}

func TestStreamsPerConnectionAreBounded(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, ServerConfig{MaxStreams: 3}, map[string]Handler{
		"hold": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			if err := st.Send(nil); err != nil {
				return err
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		},
	})
	var held []*Stream
	for range 3 {
		st, err := w.client.Open(within(t, 10*time.Second), "n", "hold")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
		held = append(held, st)
	}
	_, err := w.client.Call(within(t, 5*time.Second), "n", "echo", []byte("x"))
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.ErrBusy {
		t.Fatalf("fourth stream: %v", err)
	}
	close(release)
	for _, st := range held {
		if _, err := st.Recv(); err != io.EOF {
			t.Error(err)
		}
		st.Close()
	}
	for ctx := within(t, 10*time.Second); ; {
		if _, err := w.client.Call(ctx, "n", "echo", []byte("x")); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestCallConn(t *testing.T) {
	w := newWorld(t, ServerConfig{}, nil)
	conn, err := net.Dial("tcp", w.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.client.CallConn(within(t, 5*time.Second), conn, "echo", []byte("join"))
	if err != nil || string(resp) != "join" {
		t.Fatalf("%q %v", resp, err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("the connection was left open")
	}
}

// TestManyCallers is the mix of everything, for the race detector.
func TestManyCallers(t *testing.T) {
	w := newWorld(t, ServerConfig{}, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				req := bytes.Repeat([]byte{byte(i)}, 1+j*1000)
				if j%7 == 6 {
					cancel()
				}
				resp, err := w.client.Call(ctx, "n", "echo", req)
				if j%7 != 6 && (err != nil || !bytes.Equal(resp, req)) {
					t.Errorf("caller %d: %v", i, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
}

func TestServerCloseEndsHandlers(t *testing.T) {
	started := make(chan struct{})
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"wait": func(ctx context.Context, _ wire.Hello, _ *Stream) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		},
	})
	st, err := w.client.Open(within(t, 10*time.Second), "n", "wait")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	waitFor(t, "start", started)
	if err := w.srv.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err == nil {
		t.Error("no error")
	}
}

// TestClientCloseWithOpenStreams: streams nobody closed must not hold Close up.
func TestClientCloseWithOpenStreams(t *testing.T) {
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"wait": func(ctx context.Context, _ wire.Hello, _ *Stream) error { <-ctx.Done(); return ctx.Err() },
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := w.client.Open(ctx, "n", "wait")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send([]byte("x")); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- w.client.Close() }()
	if err := waitFor(t, "Close", closed); err != nil {
		t.Fatal(err)
	}
	if err := st.Send([]byte("x")); err == nil {
		t.Error("Send after Close")
	}
	if _, err := st.Recv(); !errors.Is(err, ErrInterrupted) {
		t.Errorf("Recv after Close: %v", err)
	}
}
