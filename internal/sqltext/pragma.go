package sqltext

import "strings"

// Pragma is one PRAGMA statement. Name and schema are in lower case.
type Pragma struct {
	Schema, Name string
	Value        string
	Set          bool // it has a value
}

// ParsePragma reads the PRAGMA statement that sql begins with, and returns what follows
// its semicolon. It takes only what SQLite's grammar takes, and not all of that.
func ParsePragma(sql string) (p Pragma, rest string, ok bool) {
	s := lexer{sql: sql}
	if word, ok := s.name(); !ok || !strings.EqualFold(word, "PRAGMA") || sql[s.at-1]|0x20 != 'a' {
		return p, "", false
	}
	if p.Name, ok = s.name(); !ok {
		return p, "", false
	}
	if s.take('.') {
		p.Schema = p.Name
		if p.Name, ok = s.name(); !ok {
			return p, "", false
		}
	}
	paren := false
	if p.Set = s.take('='); !p.Set {
		paren = s.take('(')
		p.Set = paren
	}
	if p.Set {
		if p.Value, ok = s.name(); !ok {
			if p.Value, ok = s.number(); !ok {
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
	p.Schema, p.Name = strings.ToLower(p.Schema), strings.ToLower(p.Name)
	return p, sql[s.at:], true
}
