package members

import (
	"context"
	"net"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Dialer opens connections by address, after a handshake.
type Dialer interface {
	// Advertised is the address that other nodes are told.
	Advertised() string
	DialAddr(ctx context.Context, addr string) (net.Conn, wire.Hello, error)
}

// Client calls members by ID, and whoever is at the other end of a connection, which it then closes.
type Client interface {
	Call(ctx context.Context, id, method string, req []byte) ([]byte, error)
	CallConn(ctx context.Context, conn net.Conn, method string, req []byte) ([]byte, error)
	Drop(id string) // closes the connection to a member
}

// Connect gives the keeper of a node that listens its network, before the port opens.
func (k *Keeper) Connect(d Dialer, c Client) { k.net = dialed{d, c} }

// network is how a keeper reaches other nodes.
type network interface {
	Advertised() string
	Call(ctx context.Context, id, method string, req []byte) ([]byte, error)
	Drop(id string)
	// CallAddr calls whoever answers at an address.
	CallAddr(ctx context.Context, addr, method string, req []byte) ([]byte, error)
	// Greet shakes hands with whoever answers at an address.
	Greet(ctx context.Context, addr string) (wire.Hello, error)
}

type dialed struct {
	Dialer
	Client
}

func (d dialed) CallAddr(ctx context.Context, addr, method string, req []byte) ([]byte, error) {
	conn, _, err := d.DialAddr(ctx, addr)
	if err != nil {
		return nil, err
	}
	return d.CallConn(ctx, conn, method, req)
}

func (d dialed) Greet(ctx context.Context, addr string) (wire.Hello, error) {
	conn, peer, err := d.DialAddr(ctx, addr)
	if err == nil {
		_ = conn.Close()
	}
	return peer, err
}

// nowhere is the network of a node that does not listen: it is alone, and reaches nobody.
type nowhere struct{}

func (nowhere) Advertised() string { return "" }
func (nowhere) Drop(string)        {}
func (nowhere) Call(context.Context, string, string, []byte) ([]byte, error) {
	return nil, rpc.ErrNotDelivered
}
func (nowhere) CallAddr(context.Context, string, string, []byte) ([]byte, error) {
	return nil, rpc.ErrNotDelivered
}
func (nowhere) Greet(context.Context, string) (wire.Hello, error) {
	return wire.Hello{}, rpc.ErrNotDelivered
}
