package colmena

import (
	"strconv"
	"strings"

	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// Some statements act on the connection and not on the database: most PRAGMAs. They are
// known by their own tokens, because preparing one can already carry it out. What is
// not known here goes on to the engine, which judges it with SQLite's authorizer.

// connectionStatements carries out the statements at the head of a string that act on
// the connection, and returns what follows them and how that begins. answer is the
// result of the last one if nothing follows.
func (c *conn) connectionStatements(query string) (rest string, kw sqltext.Keyword, answer *fixedRows, err error) {
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
		answer, kw, err := c.pragma(p, after == sqltext.None)
		if err != nil || answer == nil || after == sqltext.None {
			return query, kw, answer, err
		}
		query = tail
	}
}

// pragma carries out a PRAGMA that acts on the connection. Without an answer the
// statement goes on to the database, as a write if kw says so. alone tells that nothing
// follows it in its statement string.
func (c *conn) pragma(p sqltext.Pragma, alone bool) (answer *fixedRows, kw sqltext.Keyword, err error) {
	if s, ok := rememberedPragmas[p.Name]; ok {
		return c.remember(p, s), 0, nil
	}
	if held, ok := heldPragmas[p.Name]; ok {
		if !p.Set {
			return intRow(p.Name, flag(held)), 0, nil
		}
		if sqliteBool(p.Value) != held {
			return nil, 0, refusePragma(p)
		}
		return &fixedRows{}, 0, nil
	}
	switch p.Name {
	case "foreign_keys", "query_only":
		return c.switchPragma(p)
	case "journal_mode", "locking_mode", "encoding", "page_size", "auto_vacuum":
		return fixedPragma(p)
	case "user_version", "application_id":
		if p.Set {
			return nil, sqltext.Write, nil
		}
	case "defer_foreign_keys":
		// It lasts to the end of the transaction: of the string it is in, here.
		switch {
		case !alone && p.Set:
			return nil, sqltext.Write, nil
		case p.Set:
			return &fixedRows{}, 0, nil
		}
		return intRow(p.Name, 0), 0, nil
	case "wal_checkpoint":
		// The engine checkpoints by itself.
		return &fixedRows{columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
			values: [][]wire.Value{{wire.Int(0), wire.Int(0), wire.Int(0)}}}, 0, nil
	case "optimize":
		return &fixedRows{columns: []wire.Column{{Name: "optimize"}}}, 0, nil
	case "shrink_memory", "incremental_vacuum":
		return &fixedRows{}, 0, nil
	}
	return nil, sqltext.Other, nil
}

// switchPragma reads or sets what holds for this connection's own statements.
func (c *conn) switchPragma(p sqltext.Pragma) (*fixedRows, sqltext.Keyword, error) {
	at := &c.foreignKeys
	if p.Name == "query_only" {
		at = &c.queryOnly
	}
	if !p.Set {
		return intRow(p.Name, flag(*at)), 0, nil
	}
	if !isBool(p.Value) {
		return nil, 0, &RefusedError{What: "PRAGMA " + p.Name + "=" + p.Value, Advice: "set it to on or off"}
	}
	if c.tx == nil || p.Name != "foreign_keys" { // which SQLite ignores inside a transaction
		*at = sqliteBool(p.Value)
	}
	return &fixedRows{}, 0, nil
}

// fixedPragma answers for settings of the file that a replica cannot change: setting
// what holds succeeds.
func fixedPragma(p sqltext.Pragma) (*fixedRows, sqltext.Keyword, error) {
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
	holds := map[string][]string{"encoding": {"utf-8", "utf8"}, "page_size": {"4096"}, "auto_vacuum": {"0", "none", "off"}}[p.Name]
	for _, h := range holds {
		if p.Set && value == h {
			return &fixedRows{}, 0, nil
		}
	}
	if p.Set {
		return nil, 0, refusePragma(p)
	}
	return nil, sqltext.Other, nil
}

func refusePragma(p sqltext.Pragma) error {
	return &RefusedError{What: "PRAGMA " + p.Name + "=" + p.Value, Advice: "it would set this connection or replica apart from the others"}
}

// heldPragmas are switches that only have the value they hold.
var heldPragmas = map[string]bool{
	"recursive_triggers": false, "ignore_check_constraints": false, "legacy_alter_table": false, "writable_schema": false,
	"read_uncommitted": false, "reverse_unordered_selects": false, "cell_size_check": false, "fullfsync": false,
	"checkpoint_fullfsync": false, "automatic_index": true,
}

// remembered is a setting that a connection keeps and gives back, and that has no
// effect: the engine has its own way of waiting, caching and syncing.
type remembered struct {
	column  string
	initial int64
	echoes  bool // setting it returns the new value
	parse   func(string) int64
}

func atLeast(low int64, parse func(string) int64) func(string) int64 {
	return func(s string) int64 { return max(low, parse(s)) }
}

var rememberedPragmas = map[string]remembered{
	"busy_timeout":       {"timeout", 0, true, atLeast(0, sqliteInt)},
	"cache_size":         {"cache_size", -2000, false, sqliteInt},
	"synchronous":        {"synchronous", 2, false, syncLevel},
	"temp_store":         {"temp_store", 0, false, tempStore},
	"mmap_size":          {"mmap_size", 0, true, atLeast(0, sqliteInt)},
	"wal_autocheckpoint": {"wal_autocheckpoint", 1000, true, atLeast(0, sqliteInt)},
	"journal_size_limit": {"journal_size_limit", -1, true, atLeast(-1, sqliteInt)},
	"analysis_limit":     {"analysis_limit", 0, true, atLeast(0, sqliteInt)},
}

func (c *conn) remember(p sqltext.Pragma, s remembered) *fixedRows {
	if p.Set {
		if c.settings == nil {
			c.settings = map[string]int64{}
		}
		c.settings[p.Name] = s.parse(p.Value)
		if !s.echoes {
			return &fixedRows{}
		}
	}
	v, ok := c.settings[p.Name]
	if !ok {
		v = s.initial
	}
	return intRow(s.column, v)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func intRow(column string, v int64) *fixedRows {
	return &fixedRows{columns: []wire.Column{{Name: column}}, values: [][]wire.Value{{wire.Int(v)}}}
}

func textRow(column, v string) *fixedRows {
	return &fixedRows{columns: []wire.Column{{Name: column}}, values: [][]wire.Value{{wire.Text(v)}}}
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// sqliteInt reads the integer that a value begins with, 0 if there is none or it does
// not fit.
func sqliteInt(s string) int64 {
	if sqltext.IsHex(s) {
		v, _ := strconv.ParseInt(s[2:], 16, 64)
		return v
	}
	n := 0
	for n < len(s) && (digit(s[n]) || n == 0 && (s[0] == '-' || s[0] == '+')) {
		n++
	}
	v, err := strconv.ParseInt(s[:n], 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// sqliteBool is SQLite's reading of a switch: what it does not know is off.
func sqliteBool(s string) bool {
	if s != "" && digit(s[0]) {
		return sqliteInt(s) != 0
	}
	switch strings.ToLower(s) {
	case "on", "yes", "true":
		return true
	}
	return false
}

// isBool reports whether a value says clearly what a switch is to be.
func isBool(s string) bool {
	switch strings.ToLower(s) {
	case "on", "yes", "true", "off", "no", "false":
		return true
	}
	return s != "" && digit(s[0])
}

func syncLevel(s string) int64 {
	if s != "" && digit(s[0]) {
		return max(1, (sqliteInt(s)+1)&7) - 1
	}
	switch strings.ToLower(s) {
	case "off", "no", "false":
		return 0
	case "full":
		return 2
	case "extra":
		return 3
	}
	return 1
}

func tempStore(s string) int64 {
	switch {
	case strings.EqualFold(s, "file") || strings.HasPrefix(s, "1"):
		return 1
	case strings.EqualFold(s, "memory") || strings.HasPrefix(s, "2"):
		return 2
	}
	return 0
}
