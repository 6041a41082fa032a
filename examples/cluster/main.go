// Command cluster shows what replication is for. It starts three nodes as processes of
// their own, loads an SQL script through a follower, kills the leader with SIGKILL
// halfway, goes on, starts the killed node again with the same flags, and compares all
// three nodes with one another and with a plain SQLite file of the same script. Its
// exit code is 0 only if nothing was lost, nothing doubled and all are equal.
//
//	go run ./examples/cluster [-sql FILE] [-dir DIR] [-keep]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// ownSeed and ownOrders make the data when no script is given.
const (
	ownSeed   = 1
	ownOrders = 600
)

func main() {
	if flags := os.Getenv(nodeEnv); flags != "" {
		if err := runNode(flags); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		return
	}
	sqlFile := flag.String("sql", "", "load this SQL script (default: data of its own)")
	dir := flag.String("dir", "", "keep the nodes' data in this directory, which must be empty (default: a temporary one)")
	keep := flag.Bool("keep", false, "leave the data and the nodes' logs behind")
	flag.Parse()
	name, script := "its own data", ownScript(ownSeed, ownOrders)
	if *sqlFile != "" {
		b, err := os.ReadFile(*sqlFile)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		name, script = filepath.Base(*sqlFile), string(b)
	}
	d := demo{out: os.Stdout, name: name, script: script, dir: *dir, keep: *keep}
	// An interrupt ends the nodes too: their input closes.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		d.end()
		os.Exit(130)
	}()
	if err := d.run(); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

// demo is one run.
type demo struct {
	out    io.Writer
	name   string
	script string
	dir    string
	keep   bool

	endOnce sync.Once
	made    bool // dir is a temporary one
	nodes   []*process
	acks    []time.Time // when each statement was acknowledged
	took    []time.Duration
	again   int // statements sent again after an error that said: not applied
	outage  time.Duration
	skipped int
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run() (err error) {
	began := time.Now()
	defer func() {
		d.end()
		d.say("total %.1f s", time.Since(began).Seconds())
	}()
	list, skipped, err := splitScript(d.script)
	if err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	d.skipped = skipped
	want, err := plainContent(context.Background(), d.script)
	if err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	if err := d.load(list); err != nil {
		return err
	}
	if err := d.settle(); err != nil {
		return err
	}
	return d.compare(want)
}

// start starts three nodes in empty directories and waits until all of them vote.
func (d *demo) start() error {
	if err := d.prepareDir(); err != nil {
		return err
	}
	for i := range 3 {
		id := fmt.Sprintf("node-%d", i+1)
		p := &process{flags: nodeFlags{ID: id, Dir: filepath.Join(d.dir, id), Bind: "127.0.0.1:0"}}
		if i > 0 {
			p.flags.Join = d.nodes[0].flags.Bind
		}
		if err := p.start(); err != nil {
			return err
		}
		d.nodes = append(d.nodes, p)
	}
	return d.until("three voters", func() (bool, error) {
		for _, p := range d.nodes {
			r, err := p.ask("ready")
			if err != nil || r.Voters != len(d.nodes) {
				return false, err
			}
		}
		return true, nil
	})
}

func (d *demo) prepareDir() (err error) {
	if d.dir == "" {
		d.dir, err = os.MkdirTemp("", "colmena-cluster-")
		d.made = true
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("directory %s is not empty: this run begins with empty nodes", d.dir)
	}
	return err
}

// end stops the nodes and removes what they wrote.
func (d *demo) end() {
	d.endOnce.Do(func() {
		var wg sync.WaitGroup
		for _, p := range d.nodes {
			wg.Go(func() {
				if err := p.stop(); err != nil {
					d.say("%v", err)
				}
			})
		}
		wg.Wait()
		if d.keep {
			d.say("data and logs are in %s", d.dir)
			return
		}
		for _, p := range d.nodes {
			_ = os.RemoveAll(p.flags.Dir)
			_ = os.Remove(p.logFile())
		}
		if d.made {
			_ = os.RemoveAll(d.dir)
		}
	})
}

const waitTimeout = 30 * time.Second

// until polls a condition.
func (d *demo) until(what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(waitTimeout)
	for {
		done, err := ok()
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("no %s within %v", what, waitTimeout), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// leader asks all running nodes which of them leads.
func (d *demo) leader() (leader *process, err error) {
	err = d.until("leader", func() (bool, error) {
		for _, p := range d.nodes {
			if r, err := p.ask("status"); err == nil && r.Leads {
				leader = p
				return true, nil
			}
		}
		return false, nil
	})
	return leader, err
}

// settle waits until all nodes have applied the same.
func (d *demo) settle() error {
	return d.until("agreement on the applied index", func() (bool, error) {
		var first uint64
		for i, p := range d.nodes {
			if _, err := p.ask("ready"); err != nil {
				return false, err
			}
			r, err := p.ask("status")
			if err != nil {
				return false, err
			}
			if i == 0 {
				first = r.Applied
			} else if r.Applied != first {
				return false, nil
			}
		}
		return true, nil
	})
}

// compare prints what each node holds, beside what plain SQLite does, and tells whether
// all is well.
func (d *demo) compare(want content) error {
	var states []response
	var got []content
	for _, p := range d.nodes {
		r, err := p.ask("content")
		if err != nil {
			return err
		}
		got = append(got, r.Content)
		if r, err = p.ask("status"); err != nil {
			return err
		}
		states = append(states, r)
	}
	var errs []error
	for i, c := range got {
		id := d.nodes[i].flags.ID
		if !slices.Equal(c.Tables, want.Tables) {
			errs = append(errs, fmt.Errorf("%s has other rows than a plain load of the script: statements were lost or doubled", id))
		}
		if c.Checksum != got[0].Checksum || states[i].Applied != states[0].Applied {
			errs = append(errs, fmt.Errorf("%s and %s differ", d.nodes[0].flags.ID, id))
		}
		if c.Integrity != "ok" {
			errs = append(errs, fmt.Errorf("%s: integrity_check: %s", id, c.Integrity))
		}
	}
	d.table(states, got, want)
	d.say("writes were unavailable for %.2f s (the longest gap between acknowledged writes; the typical write took %v)",
		d.outage.Seconds(), d.typical().Round(10*time.Microsecond))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if got[0].Checksum == want.Checksum {
		d.say("OK: nothing lost, nothing doubled, all nodes equal, and equal to plain SQLite")
	} else {
		// A DEFAULT of the present time, say, has another value here.
		d.say("OK: nothing lost, nothing doubled, all nodes equal; values that depend on the time or on chance differ from plain SQLite's")
	}
	return nil
}

func (d *demo) table(states []response, got []content, want content) {
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	line := func(head, plain string, cell func(i int) string) {
		fmt.Fprint(w, head)
		for i := range d.nodes {
			fmt.Fprint(w, "\t", cell(i))
		}
		fmt.Fprintln(w, "\t"+plain)
	}
	line("", "plain SQLite", func(i int) string { return d.nodes[i].flags.ID })
	line("role", "", func(i int) string {
		if states[i].Leads {
			return "leader"
		}
		return "follower"
	})
	line("applied index", "", func(i int) string { return fmt.Sprint(states[i].Applied) })
	for _, t := range want.Tables {
		line("rows of "+t.Name, fmt.Sprint(t.Rows), func(i int) string {
			for _, have := range got[i].Tables {
				if have.Name == t.Name {
					return fmt.Sprint(have.Rows)
				}
			}
			return "no table"
		})
	}
	line("content checksum", want.Checksum, func(i int) string { return got[i].Checksum })
	line("integrity_check", want.Integrity, func(i int) string { return got[i].Integrity })
	_ = w.Flush()
}
