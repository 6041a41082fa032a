// Package pragma carries out the PRAGMAs that act on the connection and not on the
// database, and keeps what a connection remembers of them.
//
// They are known by their own tokens, because preparing one can already carry it out.
// What is not known here goes on to the engine, which judges it with SQLite's authorizer.
package pragma

import (
	"strings"

	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// State is what a connection remembers. It belongs to one goroutine at a time.
type State struct {
	ForeignKeys       bool             // of the connection's own writes
	RecursiveTriggers bool             // of the connection's own writes
	QueryOnly         bool             // the connection's writes are refused
	Deferred          bool             // foreign keys are deferred to the end of the transaction, or of the next
	settings          map[string]int64 // what has no effect beyond being remembered
}

// Answer is the result of a PRAGMA; the zero value is that of one without a result.
type Answer struct {
	Columns []wire.Column
	Rows    [][]wire.Value
}

// RefusedError refuses what would set the connection or its replica apart from the
// others.
type RefusedError struct {
	What   string // what was refused
	Advice string // what to do instead
}

func (e *RefusedError) Error() string { return e.What + " is refused: " + e.Advice }

// Run carries out the statements at the head of a string that act on the connection, and
// returns what follows them and how that begins. answer is the result of the last one if
// nothing follows, else nil. inTx tells that the connection is in a transaction. An error
// is a *RefusedError.
func (s *State) Run(query string, inTx bool) (rest string, kw sqltext.Keyword, answer *Answer, err error) {
	for {
		kw, at := sqltext.FirstKeyword(query)
		if kw != sqltext.PRAGMA {
			return query, kw, nil, nil
		}
		p, tail, ok := sqltext.ParsePragma(query[at:])
		if !ok || p.Schema != "" && p.Schema != "main" {
			return query, sqltext.Other, nil, nil
		}
		after, _ := sqltext.FirstKeyword(tail)
		answer, kw, err := s.run(p, after == sqltext.None, inTx)
		if err != nil || answer == nil || after == sqltext.None {
			return query, kw, answer, err
		}
		query = tail
	}
}

// CutTail cuts off what stands at the end of a statement string and sets what only the
// connection remembers: PRAGMA foreign_keys=on, say, behind what it was off for. Running the
// tail then cannot fail. The string is not cut if nothing but such statements is in it.
func CutTail(query string) (body, tail string) {
	if i := strings.IndexByte(query, ';'); i < 0 || i == len(query)-1 {
		return query, ""
	}
	at, end := 0, 0 // end of the last statement that is none of these
	for rest := query; rest != ""; {
		var first string
		first, rest = sqltext.Split(rest)
		if at += len(first); !sets(first) {
			end = at
		}
	}
	if kw, _ := sqltext.FirstKeyword(query[end:]); end == 0 || kw == sqltext.None {
		return query, ""
	}
	return query[:end], query[end:]
}

// sets reports whether a statement sets what only the connection remembers, to what it may
// be whatever it is now. A string without a statement passes for one.
func sets(query string) bool {
	kw, at := sqltext.FirstKeyword(query)
	if kw != sqltext.PRAGMA {
		return kw == sqltext.None
	}
	p, _, ok := sqltext.ParsePragma(query[at:])
	if !ok || !p.Set || p.Schema != "" && p.Schema != "main" {
		return false
	}
	_, remembered := rememberedPragmas[p.Name]
	held, holds := heldPragmas[p.Name]
	return remembered || holds && sqliteBool(p.Value) == held || (p.Name == "foreign_keys" || p.Name == "query_only") && isBool(p.Value)
}

// run carries out a PRAGMA that acts on the connection. Without an answer the statement
// goes on to the database, as a write if kw says so. alone tells that nothing follows it
// in its statement string.
func (s *State) run(p sqltext.Pragma, alone, inTx bool) (answer *Answer, kw sqltext.Keyword, err error) {
	if setting, ok := rememberedPragmas[p.Name]; ok {
		return s.remember(p, setting), 0, nil
	}
	if held, ok := heldPragmas[p.Name]; ok {
		if !p.Set {
			return intRow(p.Name, flag(held)), 0, nil
		}
		if sqliteBool(p.Value) != held {
			return nil, 0, refuse(p)
		}
		return &Answer{}, 0, nil
	}
	switch p.Name {
	case "foreign_keys":
		return toggle(&s.ForeignKeys, p, inTx) // SQLite ignores it inside a transaction
	case "recursive_triggers":
		if inTx && p.Set && sqliteBool(p.Value) != s.RecursiveTriggers {
			return nil, 0, &RefusedError{What: "PRAGMA recursive_triggers in a transaction", Advice: "it holds for a transaction as a whole: set it before"}
		}
		return toggle(&s.RecursiveTriggers, p, false)
	case "query_only":
		return toggle(&s.QueryOnly, p, false)
	case "journal_mode", "locking_mode", "encoding", "page_size", "auto_vacuum":
		return fixed(p)
	case "user_version", "application_id":
		if p.Set {
			return nil, sqltext.Write, nil
		}
	case "defer_foreign_keys":
		// It lasts to the end of the transaction: of the string it is in or of what
		// comes next, outside one.
		if !p.Set {
			return intRow(p.Name, flag(s.Deferred)), 0, nil
		}
		s.Deferred = sqliteBool(p.Value)
		if inTx || !alone {
			return nil, sqltext.Write, nil
		}
		return &Answer{}, 0, nil
	case "wal_checkpoint":
		// The engine checkpoints by itself.
		return &Answer{Columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
			Rows: [][]wire.Value{{wire.Int(0), wire.Int(0), wire.Int(0)}}}, 0, nil
	case "optimize":
		return &Answer{Columns: []wire.Column{{Name: "optimize"}}}, 0, nil
	case "shrink_memory", "incremental_vacuum":
		return &Answer{}, 0, nil
	}
	return nil, sqltext.Other, nil
}

// toggle reads or sets a switch that holds for the connection's own statements.
func toggle(at *bool, p sqltext.Pragma, ignore bool) (*Answer, sqltext.Keyword, error) {
	if !p.Set {
		return intRow(p.Name, flag(*at)), 0, nil
	}
	if !isBool(p.Value) {
		return nil, 0, &RefusedError{What: "PRAGMA " + p.Name + "=" + p.Value, Advice: "set it to on or off"}
	}
	if !ignore {
		*at = sqliteBool(p.Value)
	}
	return &Answer{}, 0, nil
}

// fixed answers for settings of the file that a replica cannot change: setting what
// holds succeeds.
func fixed(p sqltext.Pragma) (*Answer, sqltext.Keyword, error) {
	value := strings.ToLower(p.Value)
	switch p.Name {
	case "journal_mode":
		if p.Set && value != "wal" {
			return nil, 0, &RefusedError{What: "PRAGMA journal_mode=" + p.Value, Advice: "a replica's file is in WAL mode, always"}
		}
		return textRow(p.Name, "wal"), 0, nil
	case "locking_mode":
		if p.Set && value != "normal" {
			return nil, 0, &RefusedError{What: "PRAGMA locking_mode=" + p.Value, Advice: "the node's own connections share its files; leave it at normal"}
		}
		return textRow(p.Name, "normal"), 0, nil
	}
	for _, h := range fixedPragmas[p.Name] {
		if p.Set && value == h {
			return &Answer{}, 0, nil
		}
	}
	if p.Set {
		return nil, 0, refuse(p)
	}
	return nil, sqltext.Other, nil
}

func refuse(p sqltext.Pragma) error {
	return &RefusedError{What: "PRAGMA " + p.Name + "=" + p.Value, Advice: "it would set this connection or replica apart from the others"}
}

// remember keeps a setting, and gives it back.
func (s *State) remember(p sqltext.Pragma, r remembered) *Answer {
	if p.Set {
		if s.settings == nil {
			s.settings = map[string]int64{}
		}
		s.settings[p.Name] = r.parse(p.Value)
		if !r.echoes {
			return &Answer{}
		}
	}
	v, ok := s.settings[p.Name]
	if !ok {
		v = r.initial
	}
	return intRow(r.column, v)
}

func intRow(column string, v int64) *Answer {
	return &Answer{Columns: []wire.Column{{Name: column}}, Rows: [][]wire.Value{{wire.Int(v)}}}
}

func textRow(column, v string) *Answer {
	return &Answer{Columns: []wire.Column{{Name: column}}, Rows: [][]wire.Value{{wire.Text(v)}}}
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
