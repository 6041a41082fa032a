package transport

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestCloseOfRaftsNetworkEndsItsDials: raft waits for its calls when it ends, and a dial
// that nobody answers would take its own timeout.
func TestCloseOfRaftsNetworkEndsItsDials(t *testing.T) {
	b := newBook()
	b.set("srv", "nowhere")
	dialing := make(chan struct{}, 1)
	cli := start(t, "cli", b, func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			dialing <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	ended := make(chan error, 1)
	go func() {
		ended <- cli.Raft().AppendEntries("srv", "srv", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
	}()
	<-dialing
	network := cli.Raft().(raft.WithClose)
	began := time.Now()
	if err := network.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if took := time.Since(began); err == nil || took > time.Second {
			t.Errorf("%v after %v", err, took)
		}
	case <-time.After(10 * time.Second):
		t.Error("the call goes on")
	}
}
