package colmena

import (
	"strconv"
	"strings"

	"github.com/mentasystems/colmena/internal/wire"
)

// Some statements act on the connection and not on the database: most PRAGMAs. They are
// known by their own tokens, because preparing one can already carry it out. What is
// not known here goes on to the engine, which judges it with SQLite's authorizer.

// keyword is what the first word of a statement string says.
type keyword int

const (
	keywordNone  keyword = iota // blanks, comments and semicolons
	keywordOther                // to be prepared
	keywordWrite                // begins with a statement that writes, whatever the schema
	keywordPragma
)

var keywords = map[string]keyword{
	"INSERT": keywordWrite, "REPLACE": keywordWrite, "UPDATE": keywordWrite, "DELETE": keywordWrite,
	"CREATE": keywordWrite, "DROP": keywordWrite, "ALTER": keywordWrite, "REINDEX": keywordWrite, "ANALYZE": keywordWrite,
	"PRAGMA": keywordPragma,
}

const maxKeyword = 8 // bytes; longer words are no keywords of interest

// firstKeyword returns what the first word says, and where it begins.
func firstKeyword(sql string) (keyword, int) {
	s := lexer{sql: sql}
	s.skip(true)
	start := s.at
	if start == len(sql) {
		return keywordNone, start
	}
	n := 0
	var word [maxKeyword]byte
	for start+n < len(sql) && identByte(sql[start+n]) {
		if n == maxKeyword {
			return keywordOther, start
		}
		c := sql[start+n]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		word[n] = c
		n++
	}
	if kw, ok := keywords[string(word[:n])]; ok {
		return kw, start
	}
	return keywordOther, start
}

// lexer reads SQL by SQLite's rules for blanks, comments, names and numbers.
type lexer struct {
	sql string
	at  int
}

// skip moves past blanks and comments, and past semicolons if they are empty statements.
func (s *lexer) skip(semicolons bool) {
	for s.at < len(s.sql) {
		rest := s.sql[s.at:]
		switch c := rest[0]; {
		case c == ' ' || '\t' <= c && c <= '\r' && c != '\v' || c == ';' && semicolons:
			s.at++
		case strings.HasPrefix(rest, "\uFEFF"):
			s.at += len("\uFEFF")
		case strings.HasPrefix(rest, "--"):
			if i := strings.IndexByte(rest, '\n'); i >= 0 {
				s.at += i + 1
			} else {
				s.at = len(s.sql)
			}
		case strings.HasPrefix(rest, "/*") && len(rest) > 2:
			if i := strings.Index(rest[2:], "*/"); i >= 0 {
				s.at += i + 4
			} else {
				s.at = len(s.sql)
			}
		default:
			return
		}
	}
}

func identByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// take moves past c, and blanks before it, if that is what comes next.
func (s *lexer) take(c byte) bool {
	s.skip(false)
	if s.at < len(s.sql) && s.sql[s.at] == c {
		s.at++
		return true
	}
	return false
}

// name reads a name, quoted or not.
func (s *lexer) name() (string, bool) {
	s.skip(false)
	rest := s.sql[s.at:]
	if rest == "" {
		return "", false
	}
	switch q := rest[0]; q {
	case '\'', '"', '`':
		return s.quoted(q)
	case '[':
		i := strings.IndexByte(rest, ']')
		if i < 0 {
			return "", false
		}
		s.at += i + 1
		return rest[1:i], true
	}
	if !identByte(rest[0]) || digit(rest[0]) || rest[0] == '$' {
		return "", false
	}
	n := 1
	for n < len(rest) && identByte(rest[n]) {
		n++
	}
	if (rest[0] == 'x' || rest[0] == 'X') && n == 1 && len(rest) > 1 && rest[1] == '\'' {
		return "", false // a blob
	}
	s.at += n
	return rest[:n], true
}

func (s *lexer) quoted(q byte) (string, bool) {
	var b strings.Builder
	for i := s.at + 1; i < len(s.sql); i++ {
		if s.sql[i] != q {
			b.WriteByte(s.sql[i])
			continue
		}
		if i+1 < len(s.sql) && s.sql[i+1] == q {
			b.WriteByte(q)
			i++
			continue
		}
		s.at = i + 1
		return b.String(), true
	}
	return "", false
}

// number reads a number with its sign, as SQLite hands it to a pragma.
func (s *lexer) number() (string, bool) {
	sign := ""
	if s.take('-') {
		sign = "-"
	} else {
		s.take('+')
	}
	s.skip(false)
	n, rest := 0, s.sql[s.at:]
	for n < len(rest) && (identByte(rest[n]) || rest[n] == '.') {
		n++
	}
	word := rest[:n]
	if n == 0 || !digit(word[0]) && word[0] != '.' {
		return "", false
	}
	if !hexNumber(word) {
		if strings.ContainsAny(word, "_xXpPiInN") {
			return "", false
		}
		if _, err := strconv.ParseFloat(word, 64); err != nil {
			return "", false
		}
	}
	s.at += n
	return sign + word, true
}

func hexNumber(s string) bool {
	if len(s) < 3 || s[0] != '0' || s[1]|0x20 != 'x' {
		return false
	}
	return strings.Trim(s[2:], "0123456789abcdefABCDEF") == ""
}

// pragma is one PRAGMA statement. Name and schema are in lower case.
type pragma struct {
	schema, name string
	value        string
	set          bool // it has a value
}

// parsePragma reads the PRAGMA statement that sql begins with, and returns what follows
// its semicolon. It takes only what SQLite's grammar takes, and not all of that.
func parsePragma(sql string) (p pragma, rest string, ok bool) {
	s := lexer{sql: sql}
	if word, ok := s.name(); !ok || !strings.EqualFold(word, "PRAGMA") || sql[s.at-1]|0x20 != 'a' {
		return p, "", false
	}
	if p.name, ok = s.name(); !ok {
		return p, "", false
	}
	if s.take('.') {
		p.schema = p.name
		if p.name, ok = s.name(); !ok {
			return p, "", false
		}
	}
	paren := false
	if p.set = s.take('='); !p.set {
		paren = s.take('(')
		p.set = paren
	}
	if p.set {
		if p.value, ok = s.name(); !ok {
			if p.value, ok = s.number(); !ok {
				return p, "", false
			}
		}
	}
	if paren && !s.take(')') {
		return p, "", false
	}
	s.skip(false)
	if s.at < len(sql) && !s.take(';') {
		return p, "", false
	}
	p.schema, p.name = strings.ToLower(p.schema), strings.ToLower(p.name)
	return p, sql[s.at:], true
}

// connectionStatements carries out the statements at the head of a string that act on
// the connection, and returns what follows them and how that begins. answer is the
// result of the last one if nothing follows.
func (c *conn) connectionStatements(query string) (rest string, kw keyword, answer *fixedRows, err error) {
	for {
		kw, at := firstKeyword(query)
		if kw != keywordPragma {
			return query, kw, nil, nil
		}
		p, tail, ok := parsePragma(query[at:])
		if !ok || p.schema != "" && p.schema != "main" {
			return query, keywordOther, nil, nil
		}
		after, _ := firstKeyword(tail)
		answer, kw, err := c.pragma(p, after == keywordNone)
		if err != nil || answer == nil || after == keywordNone {
			return query, kw, answer, err
		}
		query = tail
	}
}

// pragma carries out a PRAGMA that acts on the connection. Without an answer the
// statement goes on to the database, as a write if kw says so. alone tells that nothing
// follows it in its statement string.
func (c *conn) pragma(p pragma, alone bool) (answer *fixedRows, kw keyword, err error) {
	if s, ok := rememberedPragmas[p.name]; ok {
		return c.remember(p, s), 0, nil
	}
	if held, ok := heldPragmas[p.name]; ok {
		if !p.set {
			return intRow(p.name, flag(held)), 0, nil
		}
		if sqliteBool(p.value) != held {
			return nil, 0, refusePragma(p)
		}
		return &fixedRows{}, 0, nil
	}
	switch p.name {
	case "foreign_keys", "query_only":
		return c.switchPragma(p)
	case "journal_mode", "locking_mode", "encoding", "page_size", "auto_vacuum":
		return fixedPragma(p)
	case "user_version", "application_id":
		if p.set {
			return nil, keywordWrite, nil
		}
	case "defer_foreign_keys":
		// It lasts to the end of the transaction: of the string it is in, here.
		switch {
		case !alone && p.set:
			return nil, keywordWrite, nil
		case p.set:
			return &fixedRows{}, 0, nil
		}
		return intRow(p.name, 0), 0, nil
	case "wal_checkpoint":
		// The engine checkpoints by itself.
		return &fixedRows{columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
			values: [][]wire.Value{{wire.Int(0), wire.Int(0), wire.Int(0)}}}, 0, nil
	case "optimize":
		return &fixedRows{columns: []wire.Column{{Name: "optimize"}}}, 0, nil
	case "shrink_memory", "incremental_vacuum":
		return &fixedRows{}, 0, nil
	}
	return nil, keywordOther, nil
}

// switchPragma reads or sets what holds for this connection's own statements.
func (c *conn) switchPragma(p pragma) (*fixedRows, keyword, error) {
	at := &c.foreignKeys
	if p.name == "query_only" {
		at = &c.queryOnly
	}
	if !p.set {
		return intRow(p.name, flag(*at)), 0, nil
	}
	if !isBool(p.value) {
		return nil, 0, &RefusedError{What: "PRAGMA " + p.name + "=" + p.value, Advice: "set it to on or off"}
	}
	if c.tx == nil || p.name != "foreign_keys" { // which SQLite ignores inside a transaction
		*at = sqliteBool(p.value)
	}
	return &fixedRows{}, 0, nil
}

// fixedPragma answers for settings of the file that a replica cannot change: setting
// what holds succeeds.
func fixedPragma(p pragma) (*fixedRows, keyword, error) {
	value := strings.ToLower(p.value)
	switch p.name {
	case "journal_mode":
		if p.set && value != "wal" {
			return nil, 0, &RefusedError{What: "PRAGMA journal_mode=" + p.value, Advice: "a replica's file is in WAL mode, always"}
		}
		return textRow(p.name, "wal"), 0, nil
	case "locking_mode":
		if p.set && value != "normal" {
			return nil, 0, &RefusedError{What: "PRAGMA locking_mode=" + p.value, Advice: "the node's own connections share its files; leave it at normal"}
		}
		return textRow(p.name, "normal"), 0, nil
	}
	holds := map[string][]string{"encoding": {"utf-8", "utf8"}, "page_size": {"4096"}, "auto_vacuum": {"0", "none", "off"}}[p.name]
	for _, h := range holds {
		if p.set && value == h {
			return &fixedRows{}, 0, nil
		}
	}
	if p.set {
		return nil, 0, refusePragma(p)
	}
	return nil, keywordOther, nil
}

func refusePragma(p pragma) error {
	return &RefusedError{What: "PRAGMA " + p.name + "=" + p.value, Advice: "it would set this connection or replica apart from the others"}
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

func (c *conn) remember(p pragma, s remembered) *fixedRows {
	if p.set {
		if c.settings == nil {
			c.settings = map[string]int64{}
		}
		c.settings[p.name] = s.parse(p.value)
		if !s.echoes {
			return &fixedRows{}
		}
	}
	v, ok := c.settings[p.name]
	if !ok {
		v = s.initial
	}
	return intRow(s.column, v)
}

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
	if hexNumber(s) {
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
