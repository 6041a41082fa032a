package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mentasystems/colmena/internal/wire"
)

// stalledConn stops writing when told to, as a peer that vanished does once the
// socket's buffer is full.
type stalledConn struct {
	net.Conn
	stalled atomic.Bool
	closed  chan struct{}
	once    sync.Once
	wrote   atomic.Int64 // bytes handed over while stalled
}

func (c *stalledConn) Write(b []byte) (int, error) {
	if c.stalled.Load() {
		c.wrote.Add(int64(len(b)))
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func (c *stalledConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestStalledConnection: contexts end waits that yamux would go on with, and the
// error says what was handed to the connection.
func TestStalledConnection(t *testing.T) {
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"sink": func(_ context.Context, _ wire.Hello, st *Stream) error {
			for {
				if _, err := st.Recv(); err != nil {
					return nil
				}
			}
		},
	})
	var stalled *stalledConn
	w.wrap = func(c net.Conn) net.Conn {
		stalled = &stalledConn{Conn: c, closed: make(chan struct{})}
		return stalled
	}
	long, err := w.client.Open(within(t, time.Minute), "n", "sink")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	closing, err := w.client.Open(within(t, time.Minute), "n", "sink")
	if err != nil {
		t.Fatal(err)
	}
	stalled.stalled.Store(true)
	began := time.Now()
	// The first call's open occupies the connection; the others wait behind it.
	for range 3 {
		_, err := w.client.Call(within(t, 50*time.Millisecond), "n", "echo", []byte("secret"))
		if !errors.Is(err, ErrNotDelivered) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call: %v", err)
		}
	}
	sending, err2 := w.client.Open(within(t, 50*time.Millisecond), "n", "sink")
	if !errors.Is(err2, ErrNotDelivered) {
		t.Errorf("open: %v %v", sending, err2)
	}
	closing.Close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	w.client.Drop("n")
	if err := long.Send(nil); err == nil {
		t.Error("Send on a dropped connection")
	}
}

// TestRevokedBytesAreNotSent: a request that was given up while it waited for the
// connection must not arrive when the connection goes on.
func TestRevokedBytesAreNotSent(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	mc := &muxConn{Conn: a}
	got := make(chan []byte, 4)
	go func() {
		for {
			buf := make([]byte, 100)
			n, err := b.Read(buf)
			if err != nil {
				close(got)
				return
			}
			got <- buf[:n]
		}
	}()
	head := make([]byte, muxHeadBytes)
	binary.BigEndian.PutUint32(head[4:], 7)
	binary.BigEndian.PutUint32(head[8:], 6)
	d := &delivery{}
	mc.watch(7, d)
	if !d.revoke() {
		t.Fatal("cannot revoke what was not sent")
	}
	mc.Write(head)
	mc.Write([]byte("secret"))
	if m := <-got; len(m) != muxHeadBytes+6 || bytes.Contains(m, []byte("secret")) {
		t.Errorf("sent %q", m)
	}
	d = &delivery{}
	mc.watch(7, d)
	mc.Write(head)
	mc.Write([]byte("public"))
	if m := <-got; !bytes.Contains(m, []byte("public")) || d.revoke() {
		t.Errorf("sent %q", m)
	}
	if mc.watching.Load() != 0 {
		t.Error("still watching")
	}
}

func TestDeliveryIsTold(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"hang": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			arrived <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		},
	})
	w.fail.Store(true)
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", nil); !errors.Is(err, ErrNotDelivered) || errors.Is(err, ErrInterrupted) {
		t.Errorf("no connection: %v", err)
	}
	w.fail.Store(false)
	failed := make(chan error, 1)
	go func() {
		_, err := w.client.Call(context.Background(), "n", "hang", nil)
		failed <- err
	}()
	waitFor(t, "the request", arrived)
	w.cut()
	if err := waitFor(t, "the failure", failed); !errors.Is(err, ErrInterrupted) || errors.Is(err, ErrNotDelivered) {
		t.Errorf("cut connection: %v", err)
	}
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", nil); err != nil {
		t.Errorf("after redial: %v", err)
	}
	if _, err := w.client.Call(within(t, time.Second), "n", "echo", make([]byte, wire.MaxFrameBytes+1)); !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrNotDelivered) {
		t.Errorf("too large: %v", err)
	}
	w.client.Close()
	if _, err := w.client.Open(t.Context(), "n", "echo"); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrNotDelivered) {
		t.Errorf("closed: %v", err)
	}
}

// TestHostileSession sends what no client of ours would.
func TestHostileSession(t *testing.T) {
	w := newWorld(t, ServerConfig{MaxFrame: 8 << 20}, map[string]Handler{
		"sink": func(_ context.Context, _ wire.Hello, st *Stream) error {
			_, err := st.Recv()
			return err
		},
	})
	conn, err := net.Dial("tcp", w.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	session, err := yamux.Client(conn, muxConfig(w.client.log))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	payloads := map[string][]byte{
		"no open":        {0, 0, 0, 0, frameData},
		"huge open":      {0xff, 0xff, 0xff, 0xff, frameOpen},
		"bad open":       {0, 0, 0, 1, frameOpen, 0x80},
		"lying length":   append(appendOpen(nil, "sink", 0), 0, 0x7f, 0xff, 0xff, frameData),
		"too large":      append(appendOpen(nil, "sink", 0), 0x7f, 0xff, 0xff, 0xff, frameData),
		"unknown type":   append(appendOpen(nil, "sink", 0), 0, 0, 0, 0, 77),
		"data after end": append(appendOpen(nil, "sink", 0), 0, 0, 0, 0, frameEnd, 0, 0, 0, 0, frameData),
	}
	for range 10 {
		for name, p := range payloads {
			st, err := session.OpenStream()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			st.Write(p)
			if name != "lying length" {
				st.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := io.Copy(io.Discard, st); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			st.Close()
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d bytes held", grown)
	}
	garbage, err := net.Dial("tcp", w.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer garbage.Close()
	garbage.Write(bytes.Repeat([]byte{0xee}, 100))
	garbage.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, garbage); isTimeout(err) {
		t.Error("garbage was not cut off")
	}
	if _, err := w.client.Call(within(t, 5*time.Second), "n", "echo", []byte("x")); err != nil {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// FuzzFrames feeds the frame reader and both decoders.
func FuzzFrames(f *testing.F) {
	f.Add(appendOpen(nil, "method", time.Second))
	f.Add(appendFailure(nil, &wire.Error{Code: wire.ErrSQL, Primary: 1, Extended: -2, Offset: 3, Msg: "m", SQL: "s", Detail: "d"}))
	f.Add([]byte{0, 0, 0, 3, frameData, 1, 2, 3, 0, 0, 0, 0, frameEnd})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, frameData})
	f.Add([]byte{0x03, 0xff, 0xff, 0xff, frameData, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			_, body, err := readFrame(r, wire.MaxFrameBytes, nil)
			if err != nil {
				return
			}
			if cap(body) > 2*len(in)+stepBytes {
				t.Fatalf("%d bytes allocated for %d", cap(body), len(in))
			}
			if method, timeout, err := decodeOpen(body); err == nil {
				m2, t2, err := decodeOpen(appendOpen(nil, method, timeout)[headBytes:])
				if err != nil || m2 != method || t2 != timeout {
					t.Fatalf("open %q %v became %q %v: %v", method, timeout, m2, t2, err)
				}
			}
			if e, err := decodeFailure(body); err == nil {
				e2, err := decodeFailure(appendFailure(nil, e)[headBytes:])
				if err != nil || *e2 != *e {
					t.Fatalf("%+v became %+v: %v", e, e2, err)
				}
			}
		}
	})
}
