package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/mentasystems/colmena"
)

// ledger is what the log holds of one client, whose IDs are its name, '-' and a number that
// it counts up. It is read at level Strong: a write that was acknowledged before the
// question is in it.
type ledger struct {
	Have    [][2]int64 `json:"have"`    // ranges of numbers, both ends included
	Doubled []string   `json:"doubled"` // IDs of any client that are in the log more than once
}

func (a *application) serveLedger(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
	defer cancel()
	l, err := a.ledger(ctx, r.FormValue("client"))
	if err != nil {
		answerError(w, err)
		return
	}
	answer(w, http.StatusOK, l)
}

func (a *application) ledger(ctx context.Context, client string) (ledger, error) {
	l := ledger{Have: [][2]int64{}, Doubled: []string{}}
	ctx = colmena.WithConsistency(ctx, colmena.Strong)
	rows, err := a.db.QueryContext(ctx, "SELECT id FROM events WHERE id >= ? AND id < ? ORDER BY seq", client+"-", client+".")
	if err != nil {
		return l, err
	}
	defer rows.Close()
	var numbers []int64
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return l, err
		}
		if n, err := strconv.ParseInt(strings.TrimPrefix(id, client+"-"), 10, 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	if err := rows.Err(); err != nil {
		return l, err
	}
	l.Have = ranges(numbers)
	l.Doubled, err = a.doubled(ctx)
	return l, err
}

// doubled returns IDs that are in the log more than once.
func (a *application) doubled(ctx context.Context) ([]string, error) {
	rows, err := a.db.QueryContext(ctx, "SELECT id FROM events GROUP BY id HAVING count(*) > 1 LIMIT 100")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	ids := []string{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// content is all that a node has applied.
type content struct {
	Rows []line `json:"rows"` // of the log, in their order
	Sum  string `json:"sum"`  // over every column of every table
}

// line is a row of the log as it was written.
type line struct {
	Seq      int64  `json:"seq"`
	ID       string `json:"id"`
	Text     string `json:"text"`
	Received string `json:"received"`
	Sent     int64  `json:"sent"`
}

func (a *application) serveContent(w http.ResponseWriter, r *http.Request) {
	c, err := a.content(r.Context())
	if err != nil {
		answerError(w, err)
		return
	}
	answer(w, http.StatusOK, c)
}

func (a *application) content(ctx context.Context) (c content, err error) {
	tx, err := a.own.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return c, err
	}
	defer func() { _ = tx.Rollback() }() // it only reads
	rows, err := tx.QueryContext(ctx, "SELECT seq, id, text, received_by, sent FROM events ORDER BY seq")
	if err != nil {
		return c, err
	}
	defer rows.Close()
	sum := sha256.New()
	for rows.Next() {
		var l line
		if err := rows.Scan(&l.Seq, &l.ID, &l.Text, &l.Received, &l.Sent); err != nil {
			return c, err
		}
		c.Rows = append(c.Rows, l)
		fmt.Fprintf(sum, "%d %q %q %q %d\n", l.Seq, l.ID, l.Text, l.Received, l.Sent)
	}
	if err := rows.Err(); err != nil {
		return c, err
	}
	terms, err := tx.QueryContext(ctx, "SELECT term, coalesce(leader, ''), coalesce(first, 0), coalesce(last, 0) FROM terms ORDER BY term")
	if err != nil {
		return c, err
	}
	defer terms.Close()
	for terms.Next() {
		var t term
		if err := terms.Scan(&t.Number, &t.Leader, &t.First, &t.Last); err != nil {
			return c, err
		}
		fmt.Fprintf(sum, "%d %q %d %d\n", t.Number, t.Leader, t.First, t.Last)
	}
	c.Sum = hex.EncodeToString(sum.Sum(nil)[:8])
	return c, terms.Err()
}
