package members

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// line notes whether it was closed.
type line struct {
	net.Conn
	closed bool
}

func (l *line) Close() error { l.closed = true; return nil }

type dialer struct{ lines []*line }

func (d *dialer) Advertised() string { return "here:1" }
func (d *dialer) DialAddr(_ context.Context, addr string) (net.Conn, wire.Hello, error) {
	if addr != "there:1" {
		return nil, wire.Hello{}, errDown
	}
	d.lines = append(d.lines, &line{})
	return d.lines[len(d.lines)-1], wire.Hello{NodeID: "there"}, nil
}

type client struct{ dropped string }

func (c *client) Drop(id string) { c.dropped = id }
func (c *client) Call(_ context.Context, id, method string, _ []byte) ([]byte, error) {
	return []byte(method + " of " + id), nil
}
func (c *client) CallConn(_ context.Context, conn net.Conn, method string, _ []byte) ([]byte, error) {
	return []byte(method), conn.Close()
}

func TestNetworkLeavesNoConnectionOpen(t *testing.T) {
	n := newNode(t, "a")
	d, c := &dialer{}, &client{}
	n.Connect(d, c)
	if h := n.Hello(wire.PurposeRPC); h.Addr != "here:1" {
		t.Errorf("%+v", h)
	}
	if h, err := n.net.Greet(t.Context(), "there:1"); err != nil || h.NodeID != "there" {
		t.Errorf("%+v, %v", h, err)
	}
	if b, err := n.net.CallAddr(t.Context(), "there:1", "m", nil); err != nil || string(b) != "m" {
		t.Errorf("%s, %v", b, err)
	}
	for _, l := range d.lines {
		if !l.closed {
			t.Error("a connection is left open")
		}
	}
	_, err := n.net.Greet(t.Context(), "down:1")
	_, err2 := n.net.CallAddr(t.Context(), "down:1", "m", nil)
	if !errors.Is(err, errDown) || !errors.Is(err2, errDown) {
		t.Errorf("%v, %v", err, err2)
	}
}

func TestANodeThatDoesNotListenReachesNobody(t *testing.T) {
	self := newNode(t, "a")
	k := NewKeeper(Config{Self: self.id, Table: self, Raft: self})
	if h := k.Hello(wire.PurposeRPC); h.Addr != "" {
		t.Errorf("%+v", h)
	}
	_, err := k.ListOf(t.Context(), "b")
	_, err2 := k.listAt(t.Context(), "b:1")
	_, err3 := k.net.Greet(t.Context(), "b:1")
	for _, err := range []error{err, err2, err3, k.Ask(t.Context(), "b", Change{})} {
		if !errors.Is(err, rpc.ErrNotDelivered) {
			t.Error(err)
		}
	}
	k.net.Drop("b")
}
