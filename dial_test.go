package colmena_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// TestDialCarriesEverything holds that nodes reach each other through Config.Dial alone:
// what they advertise is no address of TCP's, and each of them writes and reads.
func TestDialCarriesEverything(t *testing.T) {
	const nodes = 3
	var addrs [nodes]atomic.Value // where node i listens, what its neighbours dial for its name
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		for i := range addrs {
			if addr == advertisedName(i) {
				addr, _ = addrs[i].Load().(string)
			}
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	c := testcluster.New(t, nodes, func(i int, cfg *colmena.Config) {
		cfg.Advertise, cfg.Dial = advertisedName(i), dial
		cfg.Setup = func(n *colmena.Node) error { addrs[i].Store(n.Addr()); return nil }
	})
	exec(t, c.Node(0), "CREATE TABLE t(a)")
	for i := range nodes {
		exec(t, c.Node(i), "INSERT INTO t VALUES(?)", i)
		wantNumber(t, c.Node(i), colmena.Strong, int64(i+1), "SELECT count(*) FROM t")
	}
	members, err := c.Node(1).Members(limit(t))
	if err != nil || len(members) != nodes {
		t.Fatalf("%v, %v", members, err)
	}
	for i, m := range members {
		if m.Addr != advertisedName(i) {
			t.Errorf("node %d is reached at %s", i, m.Addr)
		}
	}
}

func advertisedName(i int) string { return fmt.Sprintf("node-%d.invalid:1", i+1) }
