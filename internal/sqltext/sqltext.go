// Package sqltext reads SQL by its text alone, without a schema: what a statement string
// begins with, and the PRAGMA it may be. It takes blanks, comments, names and numbers by
// SQLite's rules. What it does not know it leaves to SQLite.
package sqltext

import "strings"

// Keyword is what the first word of a statement string says.
type Keyword int

// Kinds of first words.
const (
	None  Keyword = iota // blanks, comments and semicolons
	Other                // to be prepared
	Write                // begins with a statement that writes, whatever the schema
	PRAGMA
)

var keywords = map[string]Keyword{
	"INSERT": Write, "REPLACE": Write, "UPDATE": Write, "DELETE": Write,
	"CREATE": Write, "DROP": Write, "ALTER": Write, "REINDEX": Write, "ANALYZE": Write,
	"PRAGMA": PRAGMA,
}

const maxKeyword = 8 // bytes; longer words are no keywords of interest

// FirstKeyword returns what the first word says, and where it begins.
func FirstKeyword(sql string) (Keyword, int) {
	s := lexer{sql: sql}
	s.skip(true)
	start := s.at
	if start == len(sql) {
		return None, start
	}
	n := 0
	var word [maxKeyword]byte
	for start+n < len(sql) && identByte(sql[start+n]) {
		if n == maxKeyword {
			return Other, start
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
	return Other, start
}

// FirstWord returns the letters that a statement string begins with, behind blanks,
// comments and semicolons. Digits and whatever else a name may have end it.
func FirstWord(sql string) string {
	s := lexer{sql: sql}
	s.skip(true)
	rest, n := sql[s.at:], 0
	for n < len(rest) && 'a' <= rest[n]|0x20 && rest[n]|0x20 <= 'z' {
		n++
	}
	return rest[:n]
}

// Kind is what a statement does to SQLite's count of changed rows.
type Kind int

// Kinds of statements.
const (
	Neither Kind = iota // leaves it as it is
	Rows                // may insert, update or delete rows, and counts them
	Schema              // changes the schema or the planner's statistics, and may spoil it
)

// LastKind tells, by first words, of the last statement in a string that is not Neither.
func LastKind(sql string) (last Kind) {
	for {
		i := strings.IndexByte(sql, ';')
		if i < 0 || i == len(sql)-1 {
			break
		}
		var first string
		first, sql = Split(sql)
		if k := kindOf(first); k != Neither {
			last = k
		}
	}
	if k := kindOf(sql); k != Neither {
		return k
	}
	return last
}

func kindOf(sql string) Kind {
	switch strings.ToUpper(FirstWord(sql)) {
	case "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH":
		return Rows
	case "CREATE", "DROP", "ALTER", "ANALYZE", "REINDEX":
		return Schema
	}
	return Neither
}

// SeemsToWrite guesses by its first word whether a statement writes. Comments and line
// ends behind the word mislead it.
func SeemsToWrite(sql string) bool {
	word, _, _ := strings.Cut(strings.TrimLeft(sql, " \t\r\n("), " ")
	return keywords[strings.ToUpper(word)] == Write
}
