// Command bench measures colmena against its floors in one run: hashicorp/raft with a state
// machine that does nothing, which is what consensus costs, and modernc.org/sqlite through
// database/sql, which is what storage costs. What counts are the ratios: machines are noisy,
// and the figures of two runs cannot be compared.
//
// Three nodes run in one process on loopback, with fsync.
package main

import (
	"database/sql"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"
)

var (
	flagFor  = flag.Duration("for", 2*time.Second, "how long each figure is measured")
	flagOnly = flag.String("only", "", "run the lines whose group begins with this")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// line is one line of the report.
type line struct {
	group, what string
	rate        float64 // operations per second
	p50, p99    time.Duration
	ratio       string // against which floor, with the target
}

type report struct{ lines []line }

func (r *report) add(l line) {
	r.lines = append(r.lines, l)
	fmt.Fprintf(os.Stderr, "%s: %s: %.0f/s\n", l.group, l.what, l.rate)
}

func (r *report) print() {
	w := tabwriter.NewWriter(os.Stdout, 2, 4, 2, ' ', 0)
	fmt.Fprintln(w, "group\tworkload\tper second\tp50\tp99\tratio (target)")
	for _, l := range r.lines {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%v\t%v\t%s\n", l.group, l.what, l.rate, l.p50.Round(time.Microsecond), l.p99.Round(time.Microsecond), l.ratio)
	}
	_ = w.Flush()
}

func run() error {
	dir, err := os.MkdirTemp("", "colmena-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var r report
	consensus, err := benchConsensus(dir, &r)
	if err != nil {
		return fmt.Errorf("consensus floor: %w", err)
	}
	plain, err := openPlain(dir)
	if err != nil {
		return fmt.Errorf("storage floor: %w", err)
	}
	defer plain.Close()
	c, err := startCluster(dir)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	defer c.close()
	for _, f := range []func(*cluster, *sql.DB, float64, *report) error{benchWrites, benchInteractive, benchReads} {
		if err := f(c, plain, consensus, &r); err != nil {
			return err
		}
	}
	r.print()
	return nil
}
