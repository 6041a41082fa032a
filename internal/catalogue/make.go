package catalogue

import (
	"context"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// MaxDatabases bounds the databases of a cluster.
const MaxDatabases = 1024

// Full reports whether no more databases can be made.
func (s *Set) Full() bool { return len(s.All()) > MaxDatabases }

// Make returns a database; this node leads. If there is none yet admit decides: one is made, or it is waited for, or the error is admit's.
func (s *Set) Make(ctx context.Context, name string, admit func(context.Context, string) (wanted bool, err error)) (*engine.DB, error) {
	for {
		if d := s.Get(name); d != nil {
			return d, nil
		}
		watch := s.Watch()
		wanted, err := admit(ctx, name)
		if err == nil && wanted {
			_, err = s.System().Exec(ctx, unit("INSERT INTO databases(name) VALUES(?) ON CONFLICT DO NOTHING", name))
		}
		if err != nil {
			return nil, err
		}
		if d := s.Get(name); d != nil {
			return d, nil
		}
		select {
		case <-watch:
		case <-s.cfg.Done:
			return nil, s.cfg.Closed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// DropUnit is the write that removes a database.
func DropUnit(name string) wire.Unit { return unit("DELETE FROM databases WHERE name = ?", name) }

// ClusterUnit is the first write of a cluster.
func ClusterUnit(id string) wire.Unit { return unit(Schema, id) }

// OriginUnit is the write that gives a process of a node a number to write under, the rowid it inserts. Numbers of long ago are forgotten.
func OriginUnit(node string) wire.Unit {
	u := unit("INSERT INTO instances(node) VALUES(?)", node)
	u.Statements = append([]wire.Statement{
		{SQL: "DELETE FROM instances WHERE origin < (SELECT seq FROM sqlite_sequence WHERE name='instances') - 1000"},
	}, u.Statements...)
	return u
}

func unit(sql, arg string) wire.Unit {
	args := wire.NewArgs(1)
	args.Add(wire.Text(arg))
	return wire.Unit{Statements: []wire.Statement{{SQL: sql, Args: args.Args()}}}
}
