// Command ha shows a colmena cluster live. It starts four nodes as processes of their own
// and serves a page on which each of them can be restarted, killed with SIGKILL, paused and
// cut off from the others, while an event log goes on that every node writes to.
//
//	go run ./examples/ha [-listen 127.0.0.1:8080] [-dir ha-data]
//	go run ./examples/ha -headless [-for 60s] [-chaos] [-seed N] [-dir DIR]
//
// Without a browser it writes by itself, has faults happen if -chaos is given, prints a line
// for each, and ends with exit code 1 if an acknowledged write was lost, one happened twice,
// or the nodes differ.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if flags := os.Getenv(nodeEnv); flags != "" {
		if err := runNode(flags); err != nil {
			fmt.Fprintln(os.Stderr, nodeEnds+err.Error())
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:8080", "loopback address of the page; port 0 takes a free one")
	flag.StringVar(&o.dir, "dir", "ha-data", "the nodes' data, kept when the demo stops")
	flag.BoolVar(&o.headless, "headless", false, "no page: write, check and report on the terminal")
	flag.DurationVar(&o.duration, "for", time.Minute, "with -headless: how long to write")
	flag.BoolVar(&o.chaos, "chaos", false, "with -headless: kill, restart, pause and cut off nodes at random")
	flag.Uint64Var(&o.seed, "seed", 0, "with -chaos: which faults happen when; 0 draws one")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	flag.Visit(func(f *flag.Flag) {
		if without := map[string]bool{"for": !o.headless, "chaos": !o.headless, "seed": !o.chaos, "listen": o.headless}; without[f.Name] {
			fmt.Fprintf(os.Stderr, "-%s means nothing here: -for and -chaos go with -headless, -seed with -chaos, and -listen with the page\n", f.Name)
			os.Exit(2)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the supervisor at once; the nodes find that out
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	listen, dir     string
	headless, chaos bool
	duration        time.Duration
	seed            uint64
}

// run starts the nodes and ends them when ctx ends or a headless run is over.
func run(ctx context.Context, out io.Writer, o options) (err error) {
	var page *pageListener
	if !o.headless {
		if page, err = listenForPage(o.listen); err != nil {
			return err
		}
		defer page.close()
	}
	s, err := newSupervisor(o.dir, page.url())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.startAll(); err != nil {
		return err
	}
	if o.headless {
		if o.seed == 0 {
			o.seed = rand.Uint64N(1_000_000)
		}
		return runHeadless(ctx, s, &headless{out: out, duration: o.duration, chaos: o.chaos, seed: o.seed})
	}
	fmt.Fprintf(out, "%d nodes run; their data is in %s\nopen %s/ in a browser, end with Ctrl-C\n", len(s.nodes), o.dir, page.url())
	return page.serve(ctx, s)
}
