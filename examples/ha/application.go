package main

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena"
)

// application is what runs on a node: an event log in a replicated table. It is all that
// this program does with colmena, apart from its configuration.
type application struct {
	flags nodeFlags
	began time.Time
	node  *colmena.Node
	db    *sql.DB // reads are Weak, the default
	own   *sql.DB // reads are of what this node has applied
	terms *terms
	rows  atomic.Int64 // see count

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something was applied; guarded by mu
}

func newApplication(f nodeFlags) *application {
	return &application{flags: f, began: time.Now(), terms: newTerms(), changed: make(chan struct{})}
}

func (a *application) open(node *colmena.Node) (err error) {
	a.node, a.db = node, node.DB()
	a.own, err = node.OpenDB("", colmena.None)
	return err
}

func (a *application) close() { _ = a.own.Close() }

// schema has no UNIQUE on the ID, on purpose: a write that happened twice would be seen.
const schema = `
CREATE TABLE IF NOT EXISTS events(
	seq INTEGER PRIMARY KEY,    -- the place in the log
	id TEXT NOT NULL,           -- chosen by the client before it sends
	text TEXT NOT NULL,
	received_by TEXT NOT NULL,  -- the node that got the request
	sent INTEGER NOT NULL       -- Unix milliseconds, by the client's clock
);
CREATE INDEX IF NOT EXISTS events_id ON events(id);
CREATE TABLE IF NOT EXISTS terms(
	term INTEGER PRIMARY KEY,
	leader TEXT,                -- NULL: not known
	first INTEGER,              -- the first and last seq that was applied in it
	last INTEGER
);`

const insertEvent = "INSERT INTO events(id, text, received_by, sent) VALUES(?, ?, ?, ?)"

// event is a write of a client. Times are Unix milliseconds.
type event struct {
	ID    string `json:"id"`
	Text  string `json:"text"`
	Sent  int64  `json:"sent"`
	Until int64  `json:"until"` // when the client takes the outcome for unknown; it is not begun later
}

// writeTimeout bounds a write on the node that got it.
const writeTimeout = leaderWait + 2*time.Second

// outcome is what became of a write.
type outcome string

const (
	written    outcome = "written"
	notApplied outcome = "not applied" // certainly, so it may be sent again
	unknown    outcome = "unknown"     // it may have happened, once, or may yet
)

// write puts an event into the log. The library finds the leader, and sends the write again
// when leadership changes under it.
func (a *application) write(ctx context.Context, e event) (seq int64, o outcome, err error) {
	ctx, cancel := context.WithDeadline(ctx, earlier(time.Now().Add(writeTimeout), time.UnixMilli(e.Until)))
	defer cancel()
	res, err := a.db.ExecContext(ctx, insertEvent, e.ID, e.Text, a.flags.ID, e.Sent)
	switch {
	case err == nil:
		seq, err = res.LastInsertId()
		return seq, written, err
	case colmena.SafeToRetry(err):
		return 0, notApplied, err
	}
	return 0, unknown, err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// row is a line of the log. What is not known yet is empty.
type row struct {
	Seq      int64  `json:"seq"`
	ID       string `json:"id"`
	Text     string `json:"text"`
	Received string `json:"received"`
	Term     uint64 `json:"term"`
	Applied  string `json:"applied"` // the leader that gave it its place
	Sent     int64  `json:"sent"`
}

// last returns the newest rows that this node has applied, the newest first.
func (a *application) last(ctx context.Context, limit int) ([]row, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	terms, err := a.allTerms(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := a.own.QueryContext(ctx, "SELECT seq, id, text, received_by, sent FROM events ORDER BY seq DESC LIMIT ?", limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []row{}
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.Seq, &r.ID, &r.Text, &r.Received, &r.Sent); err != nil {
			return nil, err
		}
		r.Term, r.Applied = whose(terms, r.Seq)
		list = append(list, r)
	}
	return list, rows.Err()
}

// patience is how long a read that is only shown may wait. At level None a node waits for
// writes that it has acknowledged and not applied, which it may have to while it is cut off.
const patience = 300 * time.Millisecond

// count returns how many rows this node has applied, as far as could be told last.
func (a *application) count(ctx context.Context) int64 {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var n int64
	if a.own.QueryRowContext(ctx, "SELECT count(*) FROM events").Scan(&n) == nil {
		a.rows.Store(n)
	}
	return a.rows.Load()
}

// applied is colmena's OnApply.
func (a *application) applied(e colmena.ApplyEvent) {
	for i, s := range e.Statements {
		if s == insertEvent {
			a.terms.saw(e.Term, e.Results[i].LastInsertID)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// nextApply is closed when something is applied after the call.
func (a *application) nextApply() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// happened is colmena's OnEvent.
func (a *application) happened(e colmena.Event) {
	if e.Kind == colmena.EventLeadershipWon {
		a.terms.led(e.Term, a.flags.ID)
	}
}

// bookPause is how often the leader notes which rows its term has.
const bookPause = 300 * time.Millisecond

// keepBooks makes the tables, and has whoever leads note who led which term.
func (a *application) keepBooks(ctx context.Context) {
	made := false
	for ctx.Err() == nil {
		if !made && a.node.IsLeader() {
			_, err := a.db.ExecContext(ctx, schema)
			if made = err == nil; err != nil {
				slog.Warn("the tables were not made yet", "err", err)
			}
		}
		if made && a.node.IsLeader() {
			if err := a.noteTerms(ctx); err != nil && ctx.Err() == nil {
				slog.Warn("terms were not noted yet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(bookPause):
		}
	}
	if a.node.IsLeader() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookPause)
		defer cancel()
		_ = a.noteTerms(ctx) // else whoever leads next notes it, if anybody is left
	}
}
