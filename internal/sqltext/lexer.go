package sqltext

import (
	"strconv"
	"strings"
)

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
	if !IsHex(word) {
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

// IsHex reports whether s is a number in hexadecimal.
func IsHex(s string) bool {
	if len(s) < 3 || s[0] != '0' || s[1]|0x20 != 'x' {
		return false
	}
	return strings.Trim(s[2:], "0123456789abcdefABCDEF") == ""
}
