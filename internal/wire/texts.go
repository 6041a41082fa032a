package wire

import (
	"encoding/binary"
	"sync"
)

// textTable numbers the SQL texts of one message in order of appearance, so that a repeated one is stored once. Most messages
// repeat one text or a few; those are found without hashing.
type textTable struct {
	texts []string
	last  int            // number of the text found or added last
	index map[string]int // only beyond scanTexts texts
}

const (
	scanTexts = 8    // up to here comparing beats hashing
	keepTexts = 1024 // a table that grew beyond this is not kept for the next message
)

// reset forgets the texts, so that the table holds no caller's memory.
func (t *textTable) reset() {
	if len(t.texts) > keepTexts {
		*t = textTable{}
		return
	}
	clear(t.texts)
	t.texts, t.last = t.texts[:0], 0
	clear(t.index)
}

// find returns the number of s, negative if it is new.
func (t *textTable) find(s string) int {
	if t.last < len(t.texts) && t.texts[t.last] == s {
		return t.last
	}
	if len(t.texts) > scanTexts {
		if i, ok := t.index[s]; ok {
			t.last = i
			return i
		}
		return -1
	}
	for i, have := range t.texts {
		if have == s {
			t.last = i
			return i
		}
	}
	return -1
}

// add numbers s, which must be new and must not change until reset.
func (t *textTable) add(s string) {
	t.last = len(t.texts)
	t.texts = append(t.texts, s)
	if len(t.texts) <= scanTexts {
		return
	}
	if t.index == nil {
		t.index = make(map[string]int)
	}
	if len(t.index) == 0 {
		for i, have := range t.texts {
			t.index[have] = i
		}
		return
	}
	t.index[s] = t.last
}

// appendText appends the reference of s: its number plus one, or zero and the text itself. The table then holds the copy in b,
// not the caller's string: bytes once appended never change, wherever append moves the buffer.
func (t *textTable) appendText(b []byte, s string) []byte {
	if i := t.find(s); i >= 0 {
		return binary.AppendUvarint(b, uint64(i)+1)
	}
	b = append(b, 0)
	b = appendString(b, s)
	t.add(aliasString(b[len(b)-len(s):]))
	return b
}

// readText reads a reference. Texts seen for the first time are appended to texts and alias the input.
func (c *cursor) readText(texts *[]string) string {
	ref := c.uvarint()
	if ref == 0 {
		s := c.text("statement bytes", MaxStatementBytes)
		*texts = append(*texts, s)
		return s
	}
	if ref > uint64(len(*texts)) {
		c.fail("reference to an SQL text that did not appear")
		return ""
	}
	return (*texts)[ref-1]
}

// readArgs reads arguments and checks them, together with the text they belong to.
func (c *cursor) readArgs(sql string) Args {
	a := Args(c.bytes("statement bytes", MaxStatementBytes))
	if len(sql)+len(a) > MaxStatementBytes {
		c.failLimit("statement bytes", uint64(len(sql)+len(a)), MaxStatementBytes)
		return nil
	}
	if len(a) == 0 {
		return nil
	}
	if err := a.Check(); err != nil {
		if c.err == nil {
			c.err = err
		}
		c.b, c.off = nil, 0
		return nil
	}
	return a
}

var textTables = sync.Pool{New: func() any { return new(textTable) }}
