package catalogue

import (
	"context"
	"errors"
	"io/fs"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// Pin implements snapshot.Copier: every database frozen for copying, each at its own
// mark; one created later comes from the log. A pin waits for an epoch that is out, and
// so for the log's goroutine: the set must stay free to change meanwhile. When a database
// was dropped before it could be pinned, all begin anew, because the system database is
// pinned first and may still name it.
func (s *Set) Pin(ctx context.Context) (snapshot.Pinned, error) {
	for {
		p := &pinnedSet{}
		dropped, err := s.pinAll(ctx, p)
		if err == nil {
			s.sends.Add(1)
			return p, nil
		}
		p.Release()
		if !dropped {
			return nil, err
		}
	}
}

// pinAll adds a pin of every database to p. dropped says that it failed because one of
// them is not in the set any more.
func (s *Set) pinAll(ctx context.Context, p *pinnedSet) (dropped bool, err error) {
	for _, d := range s.All() {
		pin, err := d.Pin(ctx)
		if err != nil {
			now, _ := s.Route(d.Incarnation())
			return errors.Is(err, engine.ErrClosed) && now != d, err
		}
		p.pins = append(p.pins, pin)
		main, wal := pin.Sizes()
		p.files = append(p.files, snapshot.PinnedFile{
			Database: describe(d, pin.Mark),
			Parts:    []snapshot.Part{{Suffix: "", Size: main, Copy: pin.CopyMain}, {Suffix: "-wal", Size: wal, Copy: pin.CopyWAL}},
		})
	}
	return false, nil
}

type pinnedSet struct {
	pins  []*engine.Pin
	files []snapshot.PinnedFile
}

func (p *pinnedSet) Files() []snapshot.PinnedFile { return p.files }

func (p *pinnedSet) Release() {
	for _, pin := range p.pins {
		pin.Release()
	}
}

// Sends counts the copies of all databases that were pinned.
func (s *Set) Sends() uint64 { return s.sends.Load() }

// FileMark tells the snapshot store what a file states, before raft starts.
func (s *Set) FileMark(db snapshot.Database) (wire.Mark, uint64, error) {
	d, known := s.Route(db.Incarnation)
	switch {
	case d != nil:
		return d.Mark(), d.Incarnation(), nil
	case known:
		return wire.Mark{}, 0, snapshot.ErrDropped
	}
	return wire.Mark{}, 0, fs.ErrNotExist
}
