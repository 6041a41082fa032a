package freshness

import (
	"context"
	"sync"
)

// delivery tells when committed entries have been handed to the databases.
type delivery struct {
	cfg *Config

	mu      sync.Mutex    // guards what follows
	changed chan struct{} // closed at the next delivery, nil while nobody waits
	quiet   uint64        // up to here raft's own entries follow what was delivered
}

// Delivered is called after an entry was handed to the databases, and Consensus.Applied says so.
func (g *Gauge) Delivered() {
	d := &g.delivery
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// await waits until every command up to index, which is committed, has been handed to the databases. Entries of raft's own never are.
func (d *delivery) await(ctx context.Context, index uint64) error {
	for {
		d.mu.Lock()
		applied := d.cfg.Consensus.Applied()
		if max(applied, d.quiet) >= index {
			d.mu.Unlock()
			return nil
		}
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed, from := d.changed, max(applied, d.quiet)
		d.mu.Unlock()
		if d.cfg.Consensus.NoCommands(from+1, index) {
			d.mu.Lock()
			d.quiet = max(d.quiet, index)
			d.mu.Unlock()
			return nil
		}
		select {
		case <-changed:
		case <-d.cfg.Done:
			return d.cfg.Errors.Closed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
