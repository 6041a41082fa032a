package main

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// echo is a node that says back what it is told.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func newTestNetwork(t *testing.T) *network {
	t.Helper()
	w, err := newNetwork([]string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	for _, id := range []string{"a", "b", "c"} {
		w.setTarget(id, echo(t))
	}
	return w
}

// talk tells whether what one node says comes back within a moment.
func talk(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return hear(t, conn, 150*time.Millisecond)
}

func hear(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err == nil
}

// TestCutsHoldBackWhatTheySay holds that each kind of cut parts a node from all others, in
// the connections that there are and in new ones, and no others from each other; and that
// what was said meanwhile arrives when it is healed.
func TestCutsHoldBackWhatTheySay(t *testing.T) {
	w := newTestNetwork(t)
	dial := func(from, to string) net.Conn {
		conn, err := dialAs(from)(t.Context(), w.addr(to))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	in, out, beside := dial("a", "b"), dial("b", "a"), dial("a", "c")
	for _, conn := range []net.Conn{in, out, beside} {
		if !talk(t, conn) {
			t.Fatal("nothing passes at first")
		}
	}
	for _, cut := range []struct {
		name       string
		deaf, mute bool
	}{{"both ways", true, true}, {"deaf", true, false}, {"mute", false, true}} {
		w.cut("b", cut.deaf, cut.mute)
		if talk(t, in) || talk(t, out) || talk(t, dial("c", "b")) || talk(t, dial("b", "c")) {
			t.Errorf("%s: an answer came through", cut.name)
		}
		if !talk(t, beside) {
			t.Errorf("%s: the others are parted from each other", cut.name)
		}
		w.healAll()
		if !hear(t, in, 5*time.Second) || !hear(t, out, 5*time.Second) {
			t.Errorf("%s: what was held back did not arrive", cut.name)
		}
	}
}

// TestStrangersAreNotCarried: who does not say which node it is cannot be cut off.
func TestStrangersAreNotCarried(t *testing.T) {
	w := newTestNetwork(t)
	conn, err := dialAs("nobody")(t.Context(), w.addr("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Read(make([]byte, 1)); err == nil || ctx.Err() != nil {
		t.Errorf("a stranger was let in: %v", err)
	}
}

// TestCutHoldsBackTheEndOfAConnection: a node that dies while it is cut off is not heard to.
func TestCutHoldsBackTheEndOfAConnection(t *testing.T) {
	w := newTestNetwork(t)
	ended := make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.setTarget("b", l.Addr().String())
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		close(ended)
	}()
	conn, err := dialAs("a")(t.Context(), w.addr("b"))
	if err != nil {
		t.Fatal(err)
	}
	if !talk(t, conn) {
		t.Fatal("nothing passes at first")
	}
	w.cut("a", true, true)
	_ = conn.Close()
	select {
	case <-ended:
		t.Error("the other side heard of the end")
	case <-time.After(150 * time.Millisecond):
	}
	w.healAll()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("it did not hear of it when it was healed")
	}
}
