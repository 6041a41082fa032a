package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// directWorld is a world whose client has direct connections too.
type directWorld struct {
	*world
	dialed atomic.Int32
	refuse atomic.Bool // direct dials fail
}

func newDirectWorld(t testing.TB, cfg ServerConfig, handlers map[string]Handler) *directWorld {
	t.Helper()
	w := &directWorld{world: newWorld(t, cfg, handlers)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.srv.ServeConn(conn, wire.Hello{NodeID: "client", Purpose: wire.PurposeDirect}) })
		}
	})
	t.Cleanup(func() { l.Close() })
	w.client.cfg.DialDirect = func(ctx context.Context, _ string) (net.Conn, wire.Hello, error) {
		w.dialed.Add(1)
		if w.refuse.Load() {
			return nil, wire.Hello{}, errors.New("nobody there")
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", l.Addr().String())
		return conn, wire.Hello{NodeID: "n"}, err
	}
	return w
}

// set returns the client's direct connections, once there is a multiplexed one.
func (w *directWorld) set(t testing.TB) *directSet {
	t.Helper()
	_, conn, err := w.client.session(within(t, 10*time.Second), "n")
	if err != nil {
		t.Fatal(err)
	}
	return &conn.direct
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for by := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(by) {
			t.Fatalf("never: %s", what)
		}
	}
}

// open opens a stream over a direct connection.
func (w *directWorld) open(t testing.TB, ctx context.Context, method string) *Stream {
	t.Helper()
	eventually(t, "a direct connection lies idle", func() bool {
		set := w.set(t)
		set.mu.Lock()
		idle, dialing := len(set.idle) > 0, set.dialing > 0
		set.notBefore = time.Time{} // the server may not know the multiplexed one yet
		set.mu.Unlock()
		if !idle && !dialing {
			w.client.dialDirect("n", set)
		}
		return idle
	})
	st, err := w.client.OpenDirect(ctx, ctx, "n", method)
	if err != nil {
		t.Fatal(err)
	}
	if st.direct == nil {
		t.Fatal("not direct")
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// last answers every message and ends with the one that says so.
func last(_ context.Context, _ wire.Hello, st *Stream) error {
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		if string(m) == "last" {
			return st.SendLast(m)
		}
		if err := st.Send(m); err != nil {
			return err
		}
	}
}

func ask(t testing.TB, st *Stream, m []byte) {
	t.Helper()
	if err := st.Send(m); err != nil {
		t.Fatal(err)
	}
	if b, err := st.Recv(); err != nil || !bytes.Equal(b, m) {
		t.Fatalf("%d bytes sent, %d back, %v", len(m), len(b), err)
	}
}

// TestDirectConnectionIsUsedAgain: one stream follows another on one connection, whatever
// of the one before is still on its way.
func TestDirectConnectionIsUsedAgain(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{"last": last,
		"regrets": func(_ context.Context, _ wire.Hello, st *Stream) error {
			_, err := st.Recv()
			return errors.Join(err, st.SendLast([]byte("last")), errors.New("after the end"))
		},
	})
	first := w.open(t, within(t, 10*time.Second), "last")
	ask(t, first, []byte("last"))
	first.Done()
	dialed := w.dialed.Load()
	for i := range 20 {
		st := w.open(t, within(t, 10*time.Second), "last")
		for _, n := range []int{0, 1, 5000, stepBytes - 40, stepBytes, 3*stepBytes + i} {
			ask(t, st, bytes.Repeat([]byte{byte(i)}, n))
		}
		ask(t, st, []byte("last"))
		if i%2 == 0 { // as a cancel that came too late
			if err := st.Send([]byte("late")); err != nil {
				t.Fatal(err)
			}
		}
		st.Done()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := w.dialed.Load() - dialed; n != 0 {
		t.Errorf("%d more connections for streams that followed one another", n)
	}
	// What a handler returns ends its stream and not the connection.
	st := w.open(t, within(t, 10*time.Second), "nothing")
	if err := st.Send(nil); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*wire.Error](recvErr(st)); !ok || e.Code != wire.ErrNoHandler {
		t.Errorf("got %v", e)
	}
	st.Done()
	for _, method := range []string{"regrets", "last", "last"} {
		st = w.open(t, within(t, 10*time.Second), method)
		ask(t, st, []byte("last"))
		st.Done()
	}
	if n := w.dialed.Load() - dialed; n != 0 {
		t.Errorf("%d more connections after a failure", n)
	}
}

func recvErr(st *Stream) error {
	_, err := st.Recv()
	return err
}

// TestEndOfADirectStream: whoever ends a stream in its middle, and however, the other side
// learns of it, and the connection is not used again.
func TestEndOfADirectStream(t *testing.T) {
	started, ended := make(chan struct{}, 1), make(chan error, 1)
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{
		"wait": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			if _, err := st.Recv(); err != nil {
				return err
			}
			started <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
		"recv": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			_, err := st.Recv()
			started <- struct{}{}
			if err == nil {
				_, err = st.Recv()
			}
			ended <- err
			return err
		},
	})
	ways := map[string]func(*Stream, context.CancelFunc){
		"close":                               func(st *Stream, _ context.CancelFunc) { st.Close() },
		"done":                                func(st *Stream, _ context.CancelFunc) { st.Done() },
		"cancel":                              func(_ *Stream, cancel context.CancelFunc) { cancel() },
		"drop":                                func(*Stream, context.CancelFunc) { w.client.Drop("n") },
		"death of the multiplexed connection": func(*Stream, context.CancelFunc) { w.cut() },
	}
	for _, method := range []string{"wait", "recv"} {
		for name, end := range ways {
			ctx, cancel := context.WithCancel(t.Context())
			st := w.open(t, ctx, method)
			if err := st.Send(nil); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "start", started)
			end(st, cancel)
			if err := waitFor(t, method+" after "+name, ended); err == nil {
				t.Errorf("%s after %s: no error", method, name)
			}
			if err := recvErr(st); !errors.Is(err, ErrInterrupted) {
				t.Errorf("%s after %s: caller got %v", method, name, err)
			}
			set := st.direct.of
			eventually(t, "nothing is left of "+name, func() bool {
				set.mu.Lock()
				defer set.mu.Unlock()
				return len(set.all) == 0 && len(set.idle) == 0
			})
			cancel()
		}
	}
	eventually(t, "the server has let go of all", func() bool {
		w.srv.mu.Lock()
		defer w.srv.mu.Unlock()
		return w.srv.direct == 0
	})
}

func TestServerCloseEndsDirectStreams(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{"last": last})
	st := w.open(t, within(t, 10*time.Second), "last")
	ask(t, st, []byte("x"))
	if err := w.srv.Close(); err != nil {
		t.Fatal(err)
	}
	if err := recvErr(st); !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v", err)
	}
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.OpenDirect(t.Context(), t.Context(), "n", "last"); !errors.Is(err, ErrNotDelivered) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDirectDeliveryIsTold: a connection that this side has ended delivers nothing, of one
// that the other side ended it is not known.
func TestDirectDeliveryIsTold(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{"last": last})
	st := w.open(t, within(t, 10*time.Second), "last")
	st.direct.Conn.Close()
	if err := st.Send([]byte("x")); !errors.Is(err, ErrNotDelivered) || errors.Is(err, ErrInterrupted) {
		t.Errorf("closed here: %v", err)
	}
	st.Done()
	st = w.open(t, within(t, 10*time.Second), "last")
	w.srv.mu.Lock()
	for _, beside := range w.srv.newest {
		beside.direct.close()
	}
	w.srv.mu.Unlock()
	err := st.Send([]byte("x"))
	if err == nil {
		err = recvErr(st)
	}
	if !errors.Is(err, ErrInterrupted) || errors.Is(err, ErrNotDelivered) {
		t.Errorf("closed there: %v", err)
	}
	st.Done()
	ctx, cancel := context.WithCancel(t.Context())
	w.cut()
	st = w.open(t, ctx, "last")
	cancel()
	if err := st.Send([]byte("x")); !errors.Is(err, ErrNotDelivered) || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: %v", err)
	}
}

func TestDirectSendUnblocksWhenContextEnds(t *testing.T) {
	hold := make(chan struct{})
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{
		"deaf": func(context.Context, wire.Hello, *Stream) error { <-hold; return nil },
	})
	defer close(hold)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	st := w.open(t, ctx, "deaf")
	began := time.Now()
	var err error
	for err == nil {
		err = st.Send(make([]byte, 1<<20))
	}
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrInterrupted) || time.Since(began) > 3*time.Second {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	if err := st.Send(nil); err == nil {
		t.Error("Send after a cut message")
	}
}

// TestDirectConnectionsAreBounded: beyond what either side allows the streams are those of
// the multiplexed connection, and nobody dials in vain at every stream.
func TestDirectConnectionsAreBounded(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{MaxDirect: 2}, map[string]Handler{"last": last})
	var open []*Stream
	for range 2 {
		open = append(open, w.open(t, within(t, 10*time.Second), "last"))
	}
	for _, st := range open {
		ask(t, st, []byte("x"))
	}
	before := w.dialed.Load()
	for range 20 {
		ctx := within(t, 10*time.Second)
		st, err := w.client.OpenDirect(ctx, ctx, "n", "last")
		if err != nil {
			t.Fatal(err)
		}
		if st.direct != nil {
			t.Error("a third direct connection")
		}
		ask(t, st, []byte("last"))
		st.Done()
	}
	eventually(t, "the dial has ended", func() bool {
		set := w.set(t)
		set.mu.Lock()
		defer set.mu.Unlock()
		return set.dialing == 0
	})
	if n := w.dialed.Load() - before; n < 1 || n > directDialsMax {
		t.Errorf("%d dials for 20 streams", n)
	}
	set := &directSet{}
	for range directPerNodeMax {
		set.add(&directConn{of: set})
	}
	if set.reserve() {
		t.Error("one more than a node may have")
	}
}

func TestIdleDirectConnectionEnds(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{}, map[string]Handler{"last": last})
	st := w.open(t, within(t, 10*time.Second), "last")
	d := st.direct
	d.of.expire(d) // it is in use by now
	ask(t, st, []byte("last"))
	st.Done()
	d.of.expire(d)
	if _, err := d.Conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("left open: %v", err)
	}
	eventually(t, "the server has let go", func() bool {
		w.srv.mu.Lock()
		defer w.srv.mu.Unlock()
		return w.srv.direct == 0
	})
}

// TestHostileDirectConnection sends what no client of ours would.
func TestHostileDirectConnection(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{MaxFrame: 8 << 20}, map[string]Handler{"last": last})
	w.set(t)
	eventually(t, "the multiplexed connection is served", func() bool {
		w.srv.mu.Lock()
		defer w.srv.mu.Unlock()
		return w.srv.newest["client"] != nil
	})
	first := appendOpen(nil, "last", 0)
	for name, p := range map[string][]byte{
		"huge claim":   {0xff, 0xff, 0xff, 0xff, frameOpen},
		"bad open":     {0, 0, 0, 1, frameOpen, 0x80},
		"long method":  appendOpen(nil, string(make([]byte, MethodBytesMax+1)), 0),
		"too large":    append(bytes.Clone(first), 0x7f, 0xff, 0xff, 0xff, frameData),
		"unknown type": append(bytes.Clone(first), 0, 0, 0, 0, 77),
	} {
		conn, peer := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			w.srv.ServeConn(peer, wire.Hello{NodeID: "client", Purpose: wire.PurposeDirect})
		}()
		go conn.Write(p)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		waitFor(t, name, served)
		conn.Close()
	}
	stranger, peer := net.Pipe()
	defer stranger.Close()
	w.srv.ServeConn(peer, wire.Hello{NodeID: "stranger", Purpose: wire.PurposeDirect})
	if _, err := stranger.Write([]byte{0}); err == nil {
		t.Error("served without a multiplexed connection beside")
	}
}

// TestManyDirectStreams is the mix of everything, for the race detector.
func TestManyDirectStreams(t *testing.T) {
	w := newDirectWorld(t, ServerConfig{MaxDirect: 5}, map[string]Handler{"last": last})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 40 {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				st, err := w.client.OpenDirect(ctx, ctx, "n", "last")
				if err != nil {
					t.Error(err)
					cancel()
					return
				}
				for k := range 3 {
					m := fmt.Appendf(nil, "%d %d %d", i, j, k)
					if j%7 == 6 && k == 1 {
						cancel()
					}
					err := st.Send(m)
					var b []byte
					if err == nil {
						b, err = st.Recv()
					}
					if ctx.Err() == nil && (err != nil || !bytes.Equal(b, m)) {
						t.Errorf("caller %d: %q %v", i, b, err)
					}
				}
				if ctx.Err() == nil {
					st.Send([]byte("last"))
					st.Recv()
				}
				st.Done()
				cancel()
			}
		})
	}
	wg.Wait()
}

func BenchmarkDirectPingPong(b *testing.B) {
	w := newDirectWorld(b, ServerConfig{}, map[string]Handler{"last": last})
	st := w.open(b, b.Context(), "last")
	req, buf := make([]byte, 100), make([]byte, 200)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := st.Send(req); err != nil {
			b.Fatal(err)
		}
		if _, err := st.RecvInto(buf); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}
