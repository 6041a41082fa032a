package sqltext

import "strings"

// ControlKind is what a statement does to transactions.
type ControlKind int

// Kinds of such statements.
const (
	Begin ControlKind = iota + 1
	Commit
	Rollback
	Savepoint
	Release
	RollbackTo
)

// Control is a statement that begins or ends a transaction or savepoint.
type Control struct {
	Kind ControlKind
	Name string // of the savepoint
}

var controlWords = map[string]ControlKind{
	"BEGIN": Begin, "COMMIT": Commit, "END": Commit, "ROLLBACK": Rollback, "SAVEPOINT": Savepoint, "RELEASE": Release,
}

// HasControl reports whether a string may hold a statement of Control's. It looks at the
// words that statements begin with, and at more than the first only where there are more.
func HasControl(sql string) bool {
	for sql != "" {
		word := FirstWord(sql)
		if len(word) <= len("SAVEPOINT") && controlWords[strings.ToUpper(word)] != 0 {
			return true
		}
		i := strings.IndexByte(sql, ';')
		if i < 0 || i == len(sql)-1 {
			return false
		}
		_, sql = Split(sql)
	}
	return false
}

// ParseControl reads a statement of its own, with or without a semicolon at its end. It
// takes only what SQLite's grammar takes.
func ParseControl(sql string) (c Control, ok bool) {
	s := lexer{sql: sql}
	s.skip(true)
	word, ok := s.name()
	if !ok {
		return c, false
	}
	c.Kind = controlWords[strings.ToUpper(word)]
	switch c.Kind {
	case Begin:
		_ = s.word("DEFERRED") || s.word("IMMEDIATE") || s.word("EXCLUSIVE")
		if s.word("TRANSACTION") && !s.ends() {
			_, ok = s.name()
		}
	case Commit:
		if s.word("TRANSACTION") && !s.ends() {
			_, ok = s.name()
		}
	case Rollback:
		if s.word("TRANSACTION") && !s.ends() && !s.peek("TO") {
			_, ok = s.name()
		}
		if ok && s.word("TO") {
			c.Kind = RollbackTo
			s.word("SAVEPOINT")
			c.Name, ok = s.name()
		}
	case Savepoint:
		c.Name, ok = s.name()
	case Release:
		s.word("SAVEPOINT")
		c.Name, ok = s.name()
	default:
		return Control{}, false
	}
	return c, ok && s.ends()
}

// peek reports whether a keyword comes next.
func (s *lexer) peek(keyword string) bool {
	at := s.at
	defer func() { s.at = at }()
	return s.word(keyword)
}

// word moves past a keyword if it comes next.
func (s *lexer) word(keyword string) bool {
	s.skip(false)
	rest := s.sql[s.at:]
	if len(rest) < len(keyword) || !strings.EqualFold(rest[:len(keyword)], keyword) || len(rest) > len(keyword) && identByte(rest[len(keyword)]) {
		return false
	}
	s.at += len(keyword)
	return true
}

// ends reports whether nothing but blanks, comments and semicolons follow.
func (s *lexer) ends() bool {
	at := s.at
	s.skip(true)
	end := s.at == len(s.sql)
	s.at = at
	return end
}

// Split cuts a string behind its first statement, whose semicolon belongs to it. The body
// of a trigger is a part of the statement that creates it.
func Split(sql string) (first, rest string) {
	s := lexer{sql: sql}
	s.skip(true)
	s.word("EXPLAIN")
	_ = s.word("QUERY") && s.word("PLAN")
	trigger := s.word("CREATE")
	_ = trigger && (s.word("TEMP") || s.word("TEMPORARY"))
	trigger = trigger && s.word("TRIGGER")
	semicolon := false // the last token was one, in a trigger
	for {
		s.skip(false)
		switch {
		case s.at == len(sql):
			return sql, ""
		case sql[s.at] == ';':
			s.at++
			if !trigger {
				return sql[:s.at], sql[s.at:]
			}
			semicolon = true
		case semicolon && s.word("END"):
			trigger = false
		default:
			semicolon = false
			s.token()
		}
	}
}

// token moves past one token that is no semicolon.
func (s *lexer) token() {
	c := s.sql[s.at]
	switch {
	case c == '\'' || c == '"' || c == '`':
		if _, ok := s.quoted(c); !ok {
			s.at = len(s.sql)
		}
	case c == '[':
		if i := strings.IndexByte(s.sql[s.at:], ']'); i >= 0 {
			s.at += i + 1
		} else {
			s.at = len(s.sql)
		}
	case identByte(c):
		for s.at < len(s.sql) && identByte(s.sql[s.at]) {
			s.at++
		}
	default:
		s.at++
	}
}
