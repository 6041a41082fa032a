package colmenatest

import (
	"bufio"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// wire is a network of two nodes, the first of which holds a connection to the second.
type wire struct {
	*network
	near, far net.Conn
	reader    *bufio.Reader // of far
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w, err := newNetwork(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w.change(func(doors []*door) {
		doors[0].down, doors[1].down, doors[1].target = false, false, l.Addr().String()
	})
	near, err := net.Dial("tcp", w.addr(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	x := &wire{network: w, near: near, far: far, reader: bufio.NewReader(far)}
	x.say(t, near, "I am at "+w.addr(0)+"\n")
	x.hear(t, x.reader, "I am at "+w.addr(0)+"\n")
	return x
}

func (x *wire) say(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := c.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
}

func (x *wire) hear(t *testing.T, r *bufio.Reader, line string) {
	t.Helper()
	_ = x.far.SetReadDeadline(time.Now().Add(Timeout))
	if got, err := r.ReadString('\n'); err != nil || got != line {
		t.Fatalf("heard %q, %v; want %q", got, err, line)
	}
}

// silent fails the test if something is heard within a while.
func (x *wire) silent(t *testing.T) {
	t.Helper()
	_ = x.far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if b, err := x.reader.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("heard %q, %v; want nothing", b, err)
	}
}

// TestOneDirectionIsHeldAndTheOtherPasses holds that nothing is lost on a connection that
// lives through the cut.
func TestOneDirectionIsHeldAndTheOtherPasses(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(doors []*door){
		"who dialed is mute":    func(doors []*door) { doors[0].mute = true },
		"who is called is deaf": func(doors []*door) { doors[1].deaf = true },
	} {
		t.Run(name, func(t *testing.T) {
			x := newWire(t)
			x.change(cut)
			x.say(t, x.near, "first\n")
			x.say(t, x.near, "second\n")
			x.silent(t)
			x.say(t, x.far, "answer\n")
			x.hear(t, bufio.NewReader(x.near), "answer\n")
			x.change(func(doors []*door) { doors[0].mute, doors[1].deaf = false, false })
			x.hear(t, x.reader, "first\n")
			x.hear(t, x.reader, "second\n")
		})
	}
}

// TestCutBreaksConnectionsOfBothDirections holds that those a node dialed break like those
// it accepted, and that no new one carries anything.
func TestCutBreaksConnectionsOfBothDirections(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(doors []*door){
		"who dialed is cut off":          func(doors []*door) { doors[0].mute, doors[0].deaf = true, true },
		"who is called is cut off":       func(doors []*door) { doors[1].mute, doors[1].deaf = true, true },
		"who dialed is dead":             func(doors []*door) { doors[0].down = true },
		"who is called is dead":          func(doors []*door) { doors[1].down = true },
		"each direction at its own side": func(doors []*door) { doors[0].mute, doors[1].mute = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			x := newWire(t)
			x.change(cut)
			for _, c := range []net.Conn{x.near, x.far} {
				_ = c.SetReadDeadline(time.Now().Add(Timeout))
				if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a connection still stands: %d bytes, %v", n, err)
				}
			}
			again, err := net.Dial("tcp", x.addr(1))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			_, _ = again.Write([]byte("I am at " + x.addr(0) + " again\n"))
			_ = again.SetReadDeadline(time.Now().Add(Timeout))
			if n, err := again.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a new connection stands: %d bytes, %v", n, err)
			}
		})
	}
}

// TestEndOfOneDirectionIsPassedOn holds that a side which has said all can still listen.
func TestEndOfOneDirectionIsPassedOn(t *testing.T) {
	t.Parallel()
	x := newWire(t)
	x.say(t, x.near, "last\n")
	if err := x.near.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	x.hear(t, x.reader, "last\n")
	if _, err := x.reader.ReadByte(); err == nil {
		t.Error("there is more")
	}
	x.say(t, x.far, "answer\n")
	x.hear(t, bufio.NewReader(x.near), "answer\n")
}

// TestLongerAddressIsMeant holds that a port which begins with another one is told apart.
func TestLongerAddressIsMeant(t *testing.T) {
	w := &network{doors: []*door{{addr: "127.0.0.1:4312"}, {addr: "127.0.0.1:43121"}, {addr: "127.0.0.1:431"}}}
	for i, d := range w.doors {
		l := &link{from: stranger}
		if w.recognize(l, []byte("\x00\x0f"+d.addr+"\x00")); l.from != i {
			t.Errorf("%s is taken for node %d", d.addr, l.from)
		}
	}
	l := &link{from: stranger}
	if w.recognize(l, []byte("somebody else")); l.from != stranger {
		t.Errorf("a stranger is taken for node %d", l.from)
	}
}
