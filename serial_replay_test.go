package colmena_test

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"

	"github.com/mentasystems/colmena"
)

// serialReplay runs what the log holds on plain SQLite, one transaction after the other, and
// compares all that clients were told.
type serialReplay struct {
	plain   *sql.Conn
	byTag   map[int64]*serialTx
	readers map[int64][]*serialTx // that wrote nothing, by where they stand
	places  map[*serialTx]int64   // among the transactions that wrote
	last    int64                 // place of the newest
	wrong   []string
}

// verify returns what is wrong with what the clients of a load were told, given what was
// committed and what the clients then read, and what plain SQLite makes of it.
func (l *serialLoad) verify(units []colmena.CommittedUnit) (wrong []string, plain *sql.Conn) {
	l.t.Helper()
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = db.Close() })
	plain, err = db.Conn(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = plain.Close() })
	r := &serialReplay{plain: plain, byTag: map[int64]*serialTx{}, readers: map[int64][]*serialTx{}, places: map[*serialTx]int64{}}
	for _, x := range l.txs {
		switch {
		case x.writes && x.outcome != serialRolledBack:
			r.byTag[x.tag] = x
		case x.outcome == serialCommitted || x.outcome == serialRolledBack:
			r.readers[x.base] = append(r.readers[x.base], x)
		}
	}
	r.run(l.t.Context(), units)
	r.inRealTime()
	for _, x := range l.txs {
		if _, placed := r.places[x]; !placed && (x.outcome == serialCommitted || x.outcome == serialRolledBack) {
			r.report("%s: it was told that it ended well, and has no place in the log", x.name)
		}
	}
	for _, err := range l.strange {
		r.report("an error that says nothing of the outcome: %v", err)
	}
	return r.wrong, plain
}

func (r *serialReplay) report(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

var journalTag = regexp.MustCompile(`journal\(tx\) VALUES\((\d+)\)`)

func (r *serialReplay) run(ctx context.Context, units []colmena.CommittedUnit) {
	for _, u := range units {
		text := strings.Join(u.SQL, ";")
		m := journalTag.FindAllStringSubmatch(text, -1)
		switch {
		case len(m) == 0: // what was there before the load
			if _, err := r.plain.ExecContext(ctx, text); err != nil {
				r.report("%s: %v", text, err)
			}
			continue
		case len(m) > 1:
			r.report("entry %d: one unit of several transactions: %s", u.Index, text)
		}
		if r.last == 0 {
			r.readersAt(ctx)
		}
		tag, _ := strconv.ParseInt(m[0][1], 10, 64)
		x := r.byTag[tag]
		r.last++
		switch _, twice := r.places[x]; {
		case x == nil:
			r.report("entry %d holds a transaction that was rolled back, or none that began: %s", u.Index, text)
			continue
		case twice:
			r.report("%s is in the log again, in entry %d", x.name, u.Index)
			continue
		case x.outcome == serialAborted:
			r.report("%s was told %v, and is in entry %d", x.name, x.err, u.Index)
		}
		r.places[x] = r.last
		r.repeat(ctx, x, u.Index)
		r.readersAt(ctx)
	}
}

// readersAt repeats those that wrote nothing, or undid it, and stand where the replay does.
func (r *serialReplay) readersAt(ctx context.Context) {
	for _, x := range r.readers[r.last] {
		r.places[x] = r.last
		r.repeat(ctx, x, 0)
	}
}

// repeat runs a transaction again. Of one whose outcome was not told, results of its commit
// were not told either.
func (r *serialReplay) repeat(ctx context.Context, x *serialTx, index uint64) {
	end := "ROLLBACK"
	if x.outcome != serialRolledBack {
		end = "COMMIT"
	}
	steps := slices.Concat([]serialStep{{sql: "BEGIN"}}, x.steps, []serialStep{{sql: end}})
	for i, s := range steps {
		got, err := s.run(ctx, r.plain)
		var failed *sqlite.Error
		switch {
		case errors.As(err, &failed):
			got = fmt.Sprint("error ", failed.Code())
		case err != nil:
			got = err.Error()
		}
		own := i == 0 || i == len(steps)-1
		// A statement may have ended it before its client did.
		if own && (err == nil || end == "ROLLBACK") || !own && (s.told == "" || s.told == got) {
			continue
		}
		r.report("%s, at %d in the log: step %d, %s %v: was told %q, and in the order of the log it is %q", x.name, index, i, s.sql, s.args, s.told, got)
		if own || i == 1 {
			break // the rest follows from it
		}
	}
	_, _ = r.plain.ExecContext(ctx, "ROLLBACK") // if it is still open
}

// inRealTime checks that what had ended before another began stands before it.
func (r *serialReplay) inRealTime() {
	type moment struct {
		at    int64
		x     *serialTx
		begin bool
	}
	var moments []moment
	for x := range r.places {
		moments = append(moments, moment{x.begin, x, true})
		if x.outcome != serialUnknown {
			moments = append(moments, moment{x.end, x, false})
		}
	}
	slices.SortFunc(moments, func(a, b moment) int {
		if c := cmp.Compare(a.at, b.at); c != 0 || a.begin == b.begin {
			return c
		}
		if a.begin {
			return -1
		}
		return 1
	})
	var newest *serialTx
	for _, m := range moments {
		place := r.places[m.x]
		switch {
		case !m.begin:
			if newest == nil || place > r.places[newest] {
				newest = m.x
			}
		case newest == nil:
		case m.x.writes && m.x.outcome != serialRolledBack && place <= r.places[newest], place < r.places[newest]:
			r.report("%s began after %s had ended, and stands before it: %d, %d", m.x.name, newest.name, place, r.places[newest])
		}
	}
}

// history is what the transactions saw of the lists.
func (l *serialLoad) history() history {
	var h history
	for _, x := range l.txs {
		t := txn{name: x.name, begin: x.begin, end: x.end, ops: x.ops}
		switch x.outcome {
		case serialAborted, serialRolledBack:
			t.outcome = txnAborted
		case serialUnknown:
			t.outcome, t.end = txnUnknown, math.MaxInt64
		}
		h = append(h, t)
	}
	return h
}

// readLists is a last transaction, that reads all.
func (l *serialLoad) readLists(ctx context.Context, n *colmena.Node) error {
	x := l.newTx(n, "the last reader", false)
	tx, err := n.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	told, err := x.do(ctx, tx, true, serialBase)
	if err == nil {
		_, err = fmt.Sscanf(told, "rows|%d", &x.base)
	}
	for key := range serialLists {
		if err == nil {
			_, err = x.readList(ctx, tx, key)
		}
	}
	if err = errors.Join(err, tx.Commit()); err == nil {
		l.keep(x, nil)
	}
	return err
}

// contents lists all rows of the load's tables.
func contents(ctx context.Context, q querier) (lines []string, err error) {
	for _, table := range []string{"journal", "kv", "item", "lists", "sqlite_sequence"} {
		s := serialStep{sql: "SELECT rowid, * FROM " + table + " ORDER BY 1", query: true}
		told, err := s.run(ctx, q)
		if err != nil {
			return nil, err
		}
		lines = append(lines, table+told)
	}
	return lines, nil
}

// checkSerial ends a load and checks all that is known of it: against plain SQLite, against
// the definitions of isolation, and what the replicas hold.
func (l *serialLoad) checkSerial() (wrong []string) {
	l.t.Helper()
	l.stop()
	if l.t.Failed() {
		return nil
	}
	l.c.WaitReady()
	ctx := limit(l.t)
	n := l.c.Running()[0]
	if err := l.readLists(ctx, n); err != nil {
		l.t.Fatal(err)
	}
	l.c.WaitConverged()
	units, err := n.CommittedUnits(colmena.DefaultDatabase)
	if err != nil {
		l.t.Fatal(err)
	}
	wrong, plain := l.verify(units)
	for _, a := range l.history().check() {
		wrong = append(wrong, a.String())
	}
	want, err := contents(ctx, plain)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range l.c.Running() {
		got, err := contents(colmena.WithConsistency(ctx, colmena.None), n.DB())
		if err != nil {
			l.t.Fatal(err)
		}
		for i := range got {
			if got[i] != want[i] {
				wrong = append(wrong, fmt.Sprintf("node %s holds\n%.500s\nplain SQLite\n%.500s", n.ID(), got[i], want[i]))
			}
		}
	}
	l.tell(len(units))
	return wrong
}

func (l *serialLoad) tell(units int) {
	var counts [4]int
	why := map[string]int{}
	for _, x := range l.txs {
		counts[x.outcome]++
		if x.err != nil && x.outcome == serialAborted {
			why[fmt.Sprintf("%.300s", x.err)]++
		}
	}
	l.t.Logf("%d committed, %d rolled back, %d aborted, %d unknown; %d units in the log; longest pause between two commits %v", counts[serialCommitted], counts[serialRolledBack], counts[serialAborted], counts[serialUnknown], units, time.Duration(l.longest.Load()).Round(time.Millisecond))
	for text, n := range why {
		l.t.Logf("%4d: %s", n, text)
	}
}

// wantSerial fails the test if a load was not serializable.
func (l *serialLoad) wantSerial() {
	l.t.Helper()
	for i, w := range l.checkSerial() {
		if l.t.Errorf("%s", w); i == 9 {
			l.t.Fatal("and more")
		}
	}
}
