package promtext

import (
	"math"
	"testing"
)

func TestText(t *testing.T) {
	m := New("x_")
	m.One("up", Gauge, "Whether it is up.", Truth(true))
	m.Family("reads_total", Counter, "Reads.")
	m.Sample("reads_total", 1e9, "level", "None")
	m.Sample("reads_total", 0.5, "level", "a\\b\"c\nd", "db", "")
	m.One("odd", Gauge, "Odd.", math.Inf(-1))
	const want = `# HELP x_up Whether it is up.
# TYPE x_up gauge
x_up 1
# HELP x_reads_total Reads.
# TYPE x_reads_total counter
x_reads_total{level="None"} 1e+09
x_reads_total{level="a\\b\"c\nd",db=""} 0.5
# HELP x_odd Odd.
# TYPE x_odd gauge
x_odd -Inf
`
	if got := string(m.Bytes()); got != want {
		t.Errorf("have:\n%s\nwant:\n%s", got, want)
	}
	if Truth(false) != 0 {
		t.Error("what is not so is 0")
	}
}
