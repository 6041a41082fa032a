package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// statement is one statement of a script, with its semicolon if it has one.
type statement struct {
	sql  string
	line int // the line it begins on
}

// splitScript cuts an SQL script into its statements, by SQLite's rules: semicolons in
// strings, quoted names, comments and the bodies of triggers end nothing. BEGIN, COMMIT
// and END are left out and counted: each statement is a transaction of its own here.
func splitScript(script string) (list []statement, skipped int, err error) {
	s := scanner{sql: script, line: 1}
	for {
		words, st := s.statement()
		if words == nil {
			return list, skipped, nil
		}
		switch words[0] {
		case "BEGIN", "COMMIT", "END":
			skipped++
		case "ROLLBACK", "SAVEPOINT", "RELEASE":
			return nil, 0, fmt.Errorf("line %d: %s: a script is loaded statement by statement and cannot take one back", st.line, words[0])
		default:
			list = append(list, st)
		}
	}
}

// scanner reads a script token by token.
type scanner struct {
	sql  string
	at   int
	line int
}

// maxHead is how many words at the head of a statement tell what it is: EXPLAIN QUERY
// PLAN CREATE TEMP TRIGGER.
const maxHead = 6

// statement reads up to the semicolon that ends the next statement. words are its first
// words in upper case, nil at the end of the script.
func (s *scanner) statement() (words []string, st statement) {
	start, trigger := -1, false
	last, before := "", "" // the two tokens before the present one
	for {
		tok, at, line := s.token()
		switch {
		case tok == "" && start < 0:
			return nil, st
		case tok == "":
			st.sql = s.sql[start:]
			return words, st
		case tok == ";" && start < 0:
			continue // an empty statement
		case tok == ";" && (!trigger || last == "END" && before == ";"):
			st.sql = s.sql[start:s.at]
			return words, st
		}
		if start < 0 {
			start, st.line = at, line
		}
		if len(words) < maxHead {
			words = append(words, tok)
			trigger = trigger || isTrigger(words)
		}
		before, last = last, tok
	}
}

// isTrigger reports whether a statement that begins with these words makes a trigger.
func isTrigger(words []string) bool {
	for i, w := range words {
		switch w {
		case "TRIGGER":
			return i > 0
		case "EXPLAIN", "QUERY", "PLAN", "CREATE", "TEMP", "TEMPORARY":
		default:
			return false
		}
	}
	return false
}

// token reads the next token: a word in upper case, a semicolon, or "x" for everything
// else; "" at the end.
func (s *scanner) token() (tok string, at, line int) {
	for s.at < len(s.sql) {
		rest := s.sql[s.at:]
		c := rest[0]
		switch {
		case strings.HasPrefix(rest, "--"):
			s.skipTo(rest, "\n", 2)
			continue
		case strings.HasPrefix(rest, "/*"):
			s.skipTo(rest, "*/", 2)
			continue
		case c == ' ' || '\t' <= c && c <= '\r':
			s.advance(1)
			continue
		case strings.HasPrefix(rest, "\uFEFF"):
			s.advance(len("\uFEFF"))
			continue
		}
		at, line = s.at, s.line
		switch {
		case c == ';':
			s.advance(1)
			return ";", at, line
		case c == '[':
			s.skipTo(rest, "]", 1)
		case c == '\'' || c == '"' || c == '`':
			// A doubled quote reads as the end of one token and the start of the next.
			s.skipTo(rest, string(c), 1)
		case wordByte(c):
			n := 1
			for n < len(rest) && wordByte(rest[n]) {
				n++
			}
			s.advance(n)
			return strings.ToUpper(rest[:n]), at, line
		default:
			s.advance(1)
		}
		return "x", at, line
	}
	return "", s.at, s.line
}

// skipTo moves past the next end that begins at from or later, or to the script's end.
func (s *scanner) skipTo(rest, end string, from int) {
	if i := strings.Index(rest[from:], end); i >= 0 {
		s.advance(from + i + len(end))
	} else {
		s.advance(len(rest))
	}
}

func (s *scanner) advance(n int) {
	s.line += strings.Count(s.sql[s.at:s.at+n], "\n")
	s.at += n
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// firstLine shortens a statement for a message.
func firstLine(sql string) string {
	line, _, cut := strings.Cut(sql, "\n")
	if r := []rune(line); len(r) > 60 {
		line, cut = string(r[:60]), true
	}
	if cut {
		line += " …"
	}
	return line
}

// ownScript makes a shop's data: the same for the same seed and size.
func ownScript(seed uint64, orders int) string {
	rng := rand.New(rand.NewPCG(seed, seed))
	var b strings.Builder
	b.WriteString(`PRAGMA foreign_keys = ON;
/* A shop; with what trips careless readers of scripts. */
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, note TEXT);
CREATE TABLE product(sku TEXT PRIMARY KEY, price REAL NOT NULL CHECK(price > 0), label BLOB) WITHOUT ROWID;
CREATE TABLE purchase(id INTEGER PRIMARY KEY AUTOINCREMENT, customer INTEGER NOT NULL REFERENCES customer(id), placed TEXT NOT NULL);
CREATE TABLE line(purchase INTEGER NOT NULL REFERENCES purchase(id), sku TEXT NOT NULL REFERENCES product(sku), amount INTEGER NOT NULL);
CREATE TABLE ledger(what TEXT, amount INTEGER); -- no key; so a doubled row would show
CREATE INDEX line_purchase ON line(purchase);
CREATE TRIGGER line_sold AFTER INSERT ON line BEGIN
  INSERT INTO ledger VALUES('sold; ' || new.sku, CASE WHEN new.amount > 2 THEN new.amount ELSE 1 END);
  UPDATE customer SET note = 'it''s; been here' WHERE id = (SELECT customer FROM purchase WHERE id = new.purchase);
END;
BEGIN TRANSACTION;
`)
	customers, products := orders/4+1, orders/8+1
	for i := range customers {
		fmt.Fprintf(&b, "INSERT INTO customer(name) VALUES('Nº %d; O''%c -- no comment');\n", i+1, 'A'+rune(rng.IntN(26)))
	}
	for i := range products {
		fmt.Fprintf(&b, "INSERT INTO \"product\" VALUES('sku-%d', %d.%02d, x'%08x');\n", i, 1+rng.IntN(90), rng.IntN(100), rng.Uint32())
	}
	for i := range orders {
		fmt.Fprintf(&b, "INSERT INTO purchase(customer, placed) VALUES(%d, '2026-01-%02d 12:00:00');\n", 1+rng.IntN(customers), 1+rng.IntN(28))
		b.WriteString("INSERT INTO [line] VALUES\n")
		for j := range 3 {
			sep := ",\n"
			if j == 2 {
				sep = ";\n"
			}
			fmt.Fprintf(&b, "  (%d, 'sku-%d', %d)%s", i+1, rng.IntN(products), 1+rng.IntN(5), sep)
		}
	}
	b.WriteString("COMMIT;\n")
	return b.String()
}
