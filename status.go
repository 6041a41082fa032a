package colmena

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/promtext"
)

// nodeCounters count since the process started.
type nodeCounters struct {
	writes, forwarded atomic.Uint64
	reads             [Strong + 1]atomic.Uint64 // by level
}

// read counts a read. A context may ask for a level that does not exist.
func (c *nodeCounters) read(level ConsistencyLevel) {
	if level >= None && level <= Strong {
		c.reads[level].Add(1)
	}
}

// Status is what a node knows of itself and of its cluster. It asks no other node.
type Status struct {
	NodeID, ClusterID, Incarnation, Addr string
	Role                                 string // leader, candidate, follower, learner (a follower that has no vote) or shutdown
	Ready                                bool   // it leads and takes writes
	Term                                 uint64
	Leader                               string // ID of the leader, "" while none is known
	AppliedIndex, CommitIndex            uint64
	LastContact                          time.Duration // since the leader was heard; 0 on the leader, negative: never
	LogFirst, LogLast                    uint64        // indexes held, 0 for none
	Snapshots                            []SnapshotStatus
	Databases                            []DatabaseStatus
	Members                              []Member // as known here, perhaps out of date
	Format                               FormatStatus
	Halted                               error // why this replica has stopped, nil while it goes on
	Writes, ForwardedWrites              uint64
	ReadsNone, ReadsWeak, ReadsStrong    uint64
	SnapshotSends                        uint64 // copies of all databases made for other nodes
}

// SnapshotStatus is a snapshot of this node.
type SnapshotStatus struct {
	ID          string
	Term, Index uint64
}

// DatabaseStatus is a database of this node.
type DatabaseStatus struct {
	Name                        string
	Term, Index                 uint64 // of the last entry applied
	Err                         error  // why it has stopped here, nil while it goes on
	FileBytes, WALBytes         int64
	Epochs, Writes, Checkpoints uint64 // epochs committed as leader, the writes in them
}

// FormatStatus says which format versions this node reads, and which it writes.
type FormatStatus struct{ Oldest, Newest, Writes uint16 }

// Status returns the node's present state. It may be called after Close.
func (n *Node) Status() Status {
	s := Status{NodeID: n.id.NodeID, ClusterID: n.id.ClusterID(), Incarnation: n.id.Incarnation}
	s.Addr, s.Role, s.Ready, s.Term = n.Addr(), n.raft.Role(), n.IsLeader(), n.raft.Term()
	s.Leader, _, _ = n.lead.Leader()
	s.AppliedIndex, s.CommitIndex, s.Members, s.Halted = n.AppliedIndex(), n.raft.Committed(), n.membersHere(), n.haltedErr()
	s.Format = FormatStatus{members.FormatMin, members.FormatMax, n.members.WriteFormat()}
	switch last := n.raft.LastContact(); {
	case s.Ready:
	case last.IsZero():
		s.LastContact = -1
	default:
		s.LastContact = time.Since(last)
	}
	s.LogFirst, _ = n.store.FirstIndex() // a closed or failed log holds nothing
	s.LogLast, _ = n.store.LastIndex()
	if list, err := n.snaps.List(); err == nil {
		for _, m := range list {
			s.Snapshots = append(s.Snapshots, SnapshotStatus{m.ID, m.Term, m.Index})
		}
	}
	for _, d := range n.dbs.All() {
		if d.Incarnation() != 0 && !plainfile.IsHidden(d.Name()) {
			s.Databases = append(s.Databases, databaseStatus(d))
		}
	}
	s.Writes, s.ForwardedWrites = n.count.writes.Load(), n.count.forwarded.Load()
	s.ReadsNone, s.ReadsWeak, s.ReadsStrong = n.count.reads[None].Load(), n.count.reads[Weak].Load(), n.count.reads[Strong].Load()
	s.SnapshotSends = n.dbs.Sends()
	return s
}

func databaseStatus(d *engine.DB) DatabaseStatus {
	m, c := d.Mark(), d.Stats()
	return DatabaseStatus{Name: d.Name(), Term: m.Term, Index: m.Index, Err: d.Err(), FileBytes: c.FileBytes, WALBytes: c.WALBytes,
		Epochs: c.Epochs, Writes: c.Units, Checkpoints: c.Checkpoints}
}

// MetricsHandler serves Status as Prometheus text. It authenticates nobody.
func (n *Node) MetricsHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", promtext.ContentType)
		_, _ = w.Write(n.Status().metrics())
	})
}

func (s Status) metrics() []byte {
	b := promtext.New("colmena_")
	b.Family("info", promtext.Gauge, "Who this node is; always 1.")
	b.Sample("info", 1, "node", s.NodeID, "cluster", s.ClusterID, "incarnation", s.Incarnation, "role", s.Role, "leader", s.Leader)
	b.One("leading", promtext.Gauge, "1 while this node leads and takes writes.", promtext.Truth(s.Ready))
	b.One("halted", promtext.Gauge, "1 while this replica has stopped.", promtext.Truth(s.Halted != nil))
	b.One("term", promtext.Gauge, "Raft term.", float64(s.Term))
	b.One("applied_index", promtext.Gauge, "Last log index applied to a database.", float64(s.AppliedIndex))
	b.One("commit_index", promtext.Gauge, "Last log index known to be committed.", float64(s.CommitIndex))
	b.One("last_contact_seconds", promtext.Gauge, "Since the leader was heard; negative: never.", s.LastContact.Seconds())
	b.One("log_first_index", promtext.Gauge, "First index in the log.", float64(s.LogFirst))
	b.One("log_last_index", promtext.Gauge, "Last index in the log.", float64(s.LogLast))
	b.One("snapshots", promtext.Gauge, "Snapshots kept.", float64(len(s.Snapshots)))
	b.One("format_version", promtext.Gauge, "Format version written.", float64(s.Format.Writes))
	b.One("writes_total", promtext.Counter, "Writes begun on this node.", float64(s.Writes))
	b.One("forwarded_writes_total", promtext.Counter, "Attempts to send a write to the leader.", float64(s.ForwardedWrites))
	b.One("snapshot_sends_total", promtext.Counter, "Copies of all databases made for other nodes.", float64(s.SnapshotSends))
	b.Family("reads_total", promtext.Counter, "Reads begun on this node, by level.")
	b.Sample("reads_total", float64(s.ReadsNone), "level", None.String())
	b.Sample("reads_total", float64(s.ReadsWeak), "level", Weak.String())
	b.Sample("reads_total", float64(s.ReadsStrong), "level", Strong.String())
	b.Family("member", promtext.Gauge, "1 for a voter, 0 for a learner.")
	for _, m := range s.Members {
		b.Sample("member", promtext.Truth(m.Voter), "node", m.ID, "addr", m.Addr)
	}
	for _, f := range []struct {
		name, kind, help string
		value            func(DatabaseStatus) float64
	}{
		{"db_mark_index", promtext.Gauge, "Index of the last entry applied.", func(d DatabaseStatus) float64 { return float64(d.Index) }},
		{"db_halted", promtext.Gauge, "1 while the database has stopped here.", func(d DatabaseStatus) float64 { return promtext.Truth(d.Err != nil) }},
		{"db_file_bytes", promtext.Gauge, "Size of the database file.", func(d DatabaseStatus) float64 { return float64(d.FileBytes) }},
		{"db_wal_bytes", promtext.Gauge, "Size of the write-ahead log.", func(d DatabaseStatus) float64 { return float64(d.WALBytes) }},
		{"db_epochs_total", promtext.Counter, "Epochs committed as leader.", func(d DatabaseStatus) float64 { return float64(d.Epochs) }},
		{"db_epoch_units_total", promtext.Counter, "Writes in those epochs.", func(d DatabaseStatus) float64 { return float64(d.Writes) }},
		{"db_checkpoints_total", promtext.Counter, "Background checkpoints.", func(d DatabaseStatus) float64 { return float64(d.Checkpoints) }},
	} {
		b.Family(f.name, f.kind, f.help)
		for _, d := range s.Databases {
			b.Sample(f.name, f.value(d), "db", d.Name)
		}
	}
	return b.Bytes()
}
