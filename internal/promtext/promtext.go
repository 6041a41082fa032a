// Package promtext writes metrics in the text format that Prometheus reads.
package promtext

import (
	"bytes"
	"fmt"
	"strings"
)

// ContentType is the format's.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Kinds of families.
const (
	Gauge   = "gauge"
	Counter = "counter"
)

// Text is families of samples. All samples of a family follow it before the next one begins.
type Text struct {
	prefix string
	b      bytes.Buffer
}

// New returns an empty text. Every family's name begins with prefix.
func New(prefix string) *Text { return &Text{prefix: prefix} }

// Bytes is what was written.
func (t *Text) Bytes() []byte { return t.b.Bytes() }

// Family begins a family. help is one line without backslashes.
func (t *Text) Family(name, kind, help string) {
	fmt.Fprintf(&t.b, "# HELP %s%s %s\n# TYPE %s%s %s\n", t.prefix, name, help, t.prefix, name, kind)
}

// Sample writes one value; labels are names and values in turn.
func (t *Text) Sample(name string, v float64, labels ...string) {
	t.b.WriteString(t.prefix + name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		t.b.WriteByte(sep)
		t.b.WriteString(labels[i] + `="` + labelEscapes.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		t.b.WriteByte('}')
	}
	fmt.Fprintf(&t.b, " %v\n", v)
}

// One writes a family of one sample.
func (t *Text) One(name, kind, help string, v float64) {
	t.Family(name, kind, help)
	t.Sample(name, v)
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// Truth is 1 for what is so, 0 for what is not.
func Truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
