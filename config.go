package colmena

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"runtime"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// Defaults of Config.
const (
	DefaultLeaderWait        = 10 * time.Second
	DefaultApplyTimeout      = 10 * time.Second
	DefaultBatchWindow       = time.Millisecond
	DefaultBatchMaxSize      = 4096
	DefaultHeartbeatTimeout  = 300 * time.Millisecond
	DefaultElectionTimeout   = 500 * time.Millisecond
	DefaultSnapshotInterval  = 30 * time.Second
	DefaultSnapshotThreshold = 8192
	DefaultMaxStatementTime  = 30 * time.Second
	DefaultTxWaitTimeout     = 10 * time.Second
	DefaultTxIdleTimeout     = 5 * time.Second
	DefaultTxTimeout         = time.Minute
	DefaultMaxResultBytes    = 8 << 20
	DefaultMaxConns          = 1024
	// DefaultDatabase is the name that Node.DB and an empty name stand for.
	DefaultDatabase = "default"
)

// JoinAs says what a node becomes in the cluster it joins.
type JoinAs int

const (
	// JoinAsVoter, the default: the node votes once it has caught up.
	JoinAsVoter JoinAs = iota + 1
	// JoinAsNonvoter: the node receives everything and never votes.
	JoinAsNonvoter
)

// Config configures a node. In every field the zero value means the default and a
// negative value, where it makes sense, means off. New does not change it.
type Config struct {
	// NodeID names the node in its cluster: letters, digits, '.', '_', '-', ':', at
	// most 256 bytes. Default: a random one, kept in DataDir. It cannot change later.
	NodeID string
	// DataDir holds everything the node keeps. It is made if it does not exist, and
	// belongs to one process and one NodeID. Required.
	DataDir string

	// Bind is the host:port to listen on, for everything: consensus, forwarded calls,
	// copies. Port 0 takes a free one, see Addr. Empty: no listener, a single node.
	Bind string
	// Advertise is the host:port that other nodes dial. Default: Bind, whose host must
	// then not be an unspecified one such as 0.0.0.0. Port 0 stands for the bound port.
	Advertise string
	// Join lists addresses of nodes of a cluster to enter, or to find again after
	// addresses changed. A directory with state wins over it: the node then only tells
	// these nodes its present address.
	Join []string
	// JoinAs is what the node becomes when it joins. Default JoinAsVoter.
	JoinAs JoinAs
	// Bootstrap forms a new cluster of this node alone, if DataDir holds no state. A
	// node without Bind does so anyway.
	Bootstrap bool

	// Dial, if not nil, opens every connection to another node in place of TCP: through a
	// proxy, say, or a network of the application's own. addr is what that node advertises,
	// or one of Join. TLS and the cluster's handshake run on what it returns. It ends with
	// ctx, and is called concurrently.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// TLS, if not nil, makes all connections mutual TLS; it is asked at every
	// handshake. TLSConfig is the same with a configuration that never changes. Set
	// RootCAs (or ClientCAs) and a certificate. A certificate with a URI SAN
	// colmena://<node id> is valid for that node only.
	TLS       func() (*tls.Config, error)
	TLSConfig *tls.Config
	// ClusterKeys authenticate nodes to one another without TLS: the first proves us,
	// any of them is accepted. They do not encrypt.
	ClusterKeys []string
	// AllowPlain, with TLS, accepts plaintext connections too: for the step from plain
	// to TLS one node at a time. While it is on, TLS protects against nobody.
	AllowPlain bool

	// Consistency is the level of reads that do not choose one. Default Weak.
	Consistency ConsistencyLevel
	// NonDeterministic says what happens to writes that call random() and the like in
	// their own text. Default Reject.
	NonDeterministic NonDeterministic

	// Functions and Collations add to SQL on every database. They are the application's
	// code: give the same to all nodes. See Function.
	Functions  []Function
	Collations []Collation

	// LeaderWait is how long writes, and reads that need a leader, wait for one before
	// ErrNoLeader; the context may end earlier. Default 10 s; negative: not at all.
	LeaderWait time.Duration
	// ApplyTimeout bounds how long a write that was sent waits for its result, beyond
	// the MaxStatementTime that it may run, when its context has no deadline of its
	// own. After it: ErrOutcomeUnknown. Default 10 s; negative: no bound, as when
	// MaxStatementTime is off.
	ApplyTimeout time.Duration
	// BatchWindow bounds how long a batch of writes stays open for more. A lone
	// writer waits for no window. Default 1 ms; negative: a batch takes only what
	// waits when it opens.
	BatchWindow time.Duration
	// BatchMaxSize is the most writes in one log entry. Default 4096.
	BatchMaxSize int
	// HeartbeatTimeout and ElectionTimeout are raft's: how long a follower waits for
	// its leader, and a candidate for votes, each up to twice that at random. Defaults
	// 300 ms and 500 ms.
	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration
	// SnapshotInterval is how often the node looks whether SnapshotThreshold entries
	// were added since the last snapshot, and then takes one, which copies nothing.
	// Defaults 30 s and 8192 entries.
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	// ReadConns is how many idle read connections are kept per database. Default
	// GOMAXPROCS, at least 2.
	ReadConns int
	// UnsafeNoRaftLogFsync leaves out the log's fsync. A power cut then loses
	// acknowledged writes and may damage the log. Refused unless the node is alone.
	UnsafeNoRaftLogFsync bool

	// MaxStatementTime bounds how long one write, or one statement of an interactive
	// transaction, may take on the leader, what it waits for others there included. Default
	// 30 s; negative: no bound.
	MaxStatementTime time.Duration
	// TxWaitTimeout bounds how long the leader lets a transaction, or a write, wait for an
	// interactive transaction that holds the writer. After it: *TxAbortedError, which names
	// the holder. Default 10 s; negative: no bound.
	TxWaitTimeout time.Duration
	// TxIdleTimeout bounds how long an interactive transaction may ask for nothing while
	// it holds the writer. Default 5 s; negative: no bound. It is shorter than TxWaitTimeout,
	// so that those who wait get the writer when a client falls silent, and no error.
	TxIdleTimeout time.Duration
	// TxTimeout bounds how long an interactive transaction may hold the writer. Default
	// 60 s; negative: no bound.
	TxTimeout time.Duration
	// MaxResultBytes bounds the rows that one INSERT ... RETURNING, or one query in an
	// interactive transaction, may hold in memory. Default 8 MiB, at most 32 MiB.
	MaxResultBytes int
	// MaxConns bounds inbound connections of other nodes. Default 1024.
	MaxConns int

	// Logger gets what the node has to say. Default: nothing is logged.
	Logger *slog.Logger
	// OnApply is called after each replicated write, in the order of the log across all
	// databases, one call at a time and off the apply path: a slow one delays later
	// events, and a database that lags delays those of others. See ApplyEvent.
	//
	// It may be called before New has returned, but not before Setup has: a hook that needs
	// the Node takes it from there.
	OnApply func(ApplyEvent)
	// OnEvent is called when something happens an operator should know of, perhaps before
	// New has returned. It must not block for long.
	OnEvent func(Event)
	// Setup runs before the port opens and before OnApply is called: register handlers
	// there. What it writes is told to OnApply after it. If it fails, so does New.
	Setup func(*Node) error

	trailingLogs uint64 // set by tests only
}

func (c Config) withDefaults() Config {
	dur := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	num := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if c.Consistency == 0 {
		c.Consistency = Weak
	}
	if c.NonDeterministic == 0 {
		c.NonDeterministic = Reject
	}
	if c.JoinAs == 0 {
		c.JoinAs = JoinAsVoter
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = DefaultSnapshotThreshold
	}
	if c.trailingLogs == 0 {
		c.trailingLogs = raftTrailingLogs
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TLS == nil && c.TLSConfig != nil {
		fixed := c.TLSConfig
		c.TLS = func() (*tls.Config, error) { return fixed, nil }
	}
	dur(&c.LeaderWait, DefaultLeaderWait)
	dur(&c.ApplyTimeout, DefaultApplyTimeout)
	dur(&c.BatchWindow, DefaultBatchWindow)
	dur(&c.HeartbeatTimeout, DefaultHeartbeatTimeout)
	dur(&c.ElectionTimeout, DefaultElectionTimeout)
	dur(&c.SnapshotInterval, DefaultSnapshotInterval)
	dur(&c.MaxStatementTime, DefaultMaxStatementTime)
	dur(&c.TxWaitTimeout, DefaultTxWaitTimeout)
	dur(&c.TxIdleTimeout, DefaultTxIdleTimeout)
	dur(&c.TxTimeout, DefaultTxTimeout)
	num(&c.BatchMaxSize, DefaultBatchMaxSize)
	num(&c.ReadConns, max(2, runtime.GOMAXPROCS(0)))
	num(&c.MaxResultBytes, DefaultMaxResultBytes)
	num(&c.MaxConns, DefaultMaxConns)
	return c
}

// check reports every violation at once. It expects defaults to be filled in.
func (c *Config) check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("colmena: Config."+format, args...))
	}
	if c.DataDir == "" {
		bad("DataDir is empty: name the directory in which the node keeps its data")
	}
	if c.NodeID != "" {
		if err := membership.ValidateID(c.NodeID); err != nil {
			bad("NodeID: %w", err)
		}
	}
	membership.CheckAddresses(c.Bind, c.Advertise, c.Join, bad)
	if c.Bind != "" && c.Bootstrap && len(c.Join) > 0 {
		bad("Bootstrap and Join exclude each other: set Bootstrap on the first node only, and Join on the others")
	}
	functions, collations := c.library()
	engine.CheckLibrary(functions, collations, bad)
	if c.AllowPlain && c.TLS == nil {
		bad("AllowPlain means nothing without TLS")
	}
	for i, k := range c.ClusterKeys {
		if len(k) < minKeyBytes {
			bad("ClusterKeys[%d] is shorter than %d bytes", i, minKeyBytes)
		}
	}
	if c.Consistency < None || c.Consistency > Strong {
		bad("Consistency %d is not a level", c.Consistency)
	}
	if c.NonDeterministic != Reject && c.NonDeterministic != Pin {
		bad("NonDeterministic %d is neither Reject nor Pin", c.NonDeterministic)
	}
	if c.JoinAs != JoinAsVoter && c.JoinAs != JoinAsNonvoter {
		bad("JoinAs %d is neither JoinAsVoter nor JoinAsNonvoter", c.JoinAs)
	}
	if c.MaxResultBytes > maxResultBytes {
		bad("MaxResultBytes %d is more than %d: such a result could not be sent to another node, nor held by one that repeats the write", c.MaxResultBytes, maxResultBytes)
	}
	if c.UnsafeNoRaftLogFsync && c.Bind != "" {
		bad("UnsafeNoRaftLogFsync is for a node without Bind: a member that loses its log's tail would forget what it voted and acknowledged")
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{{"HeartbeatTimeout", c.HeartbeatTimeout}, {"ElectionTimeout", c.ElectionTimeout}, {"SnapshotInterval", c.SnapshotInterval}} {
		if t.d < 5*time.Millisecond {
			bad("%s %v is shorter than 5 ms", t.name, t.d)
		}
	}
	if c.ElectionTimeout > 0 && c.ElectionTimeout < c.HeartbeatTimeout {
		bad("ElectionTimeout %v is shorter than HeartbeatTimeout %v", c.ElectionTimeout, c.HeartbeatTimeout)
	}
	for _, l := range []struct {
		name string
		n    int
	}{{"BatchMaxSize", c.BatchMaxSize}, {"ReadConns", c.ReadConns}, {"MaxResultBytes", c.MaxResultBytes}, {"MaxConns", c.MaxConns}} {
		if l.n < 1 {
			bad("%s %d is less than 1", l.name, l.n)
		}
	}
	return errors.Join(errs...)
}

const (
	minKeyBytes = 16
	// raftTrailingLogs is how many entries before a snapshot are kept for followers
	// that lag; Config.trailingLogs is what tests set instead.
	raftTrailingLogs = 10240
	// maxResultBytes bounds MaxResultBytes. Rows must fit into one message, with their
	// columns' names and other results, and into what a replica holds when it repeats the
	// write: one that cannot has to stop.
	maxResultBytes = wire.MaxFrameBytes / 2
)

var dbName = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// checkName returns the database a name stands for.
func checkName(name string) (string, error) {
	if name == "" {
		return DefaultDatabase, nil
	}
	if !dbName.MatchString(name) {
		return "", badName(name)
	}
	return name, nil
}

func badName(name string) error {
	return fmt.Errorf("colmena: database name %q: a name has 1 to 64 of the characters a-z, 0-9, '_' and '-'", name)
}
