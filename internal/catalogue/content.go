package catalogue

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// content is the content of the system database.
type content struct {
	databases map[uint64]string
	highest   uint64
	members   map[string]membership.Record
	cluster   string
}

func readContent(sys *engine.DB) (c content, err error) {
	c.databases, c.members = map[uint64]string{}, map[string]membership.Record{}
	r, err := sys.Reader(context.Background())
	if err != nil {
		return c, err
	}
	defer r.Release()
	exists := false
	err = scan(r, "SELECT 1 FROM sqlite_schema WHERE name='cluster'", func(*engine.Cursor) { exists = true })
	if err != nil || !exists {
		return c, err
	}
	return c, errors.Join(
		scan(r, "SELECT id, name FROM databases", func(cur *engine.Cursor) {
			c.databases[uint64(cur.Value(0).Int64())] = cur.Value(1).String()
		}),
		scan(r, "SELECT seq FROM sqlite_sequence WHERE name='databases'", func(cur *engine.Cursor) {
			c.highest = uint64(cur.Value(0).Int64())
		}),
		scan(r, "SELECT value FROM cluster WHERE key='id'", func(cur *engine.Cursor) { c.cluster = cur.Value(0).String() }),
		scan(r, "SELECT id, incarnation, addr, voter, engine, format_min, format_max, functions FROM members", func(cur *engine.Cursor) {
			m := membership.Record{ID: cur.Value(0).String(), Incarnation: cur.Value(1).String(), Addr: cur.Value(2).String(), Voter: cur.Value(3).Int64() != 0,
				Engine: uint64(cur.Value(4).Int64()), FormatMin: uint16(cur.Value(5).Int64()), FormatMax: uint16(cur.Value(6).Int64()), Functions: cur.Value(7).String()}
			c.members[m.ID] = m
		}))
}

func scan(r *engine.Reader, sql string, row func(*engine.Cursor)) error {
	c, err := r.Query(sql, nil, wire.PreState{})
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		ok, err := c.Next()
		if err != nil || !ok {
			return err
		}
		row(c)
	}
}

// Names reports whether the system database names a database, as far as it is applied
// here; the set may follow a moment later.
func (s *Set) Names(ctx context.Context, name string) (found bool, err error) {
	r, err := s.System().Reader(ctx)
	if err != nil {
		return false, err
	}
	defer r.Release()
	err = scan(r, "SELECT name FROM databases", func(c *engine.Cursor) { found = found || c.Value(0).String() == name })
	return found, err
}

// ClusterID is the cluster's ID as replicated, "" before the first entry.
func (s *Set) ClusterID() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cluster
}

// Member returns a member's line in the system database.
func (s *Set) Member(id string) (membership.Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m, ok := s.members[id]
	return m, ok
}

// Members returns the lines of all members, sorted by ID.
func (s *Set) Members() []membership.Record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []membership.Record
	for _, m := range s.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b membership.Record) int { return strings.Compare(a.ID, b.ID) })
	return out
}
