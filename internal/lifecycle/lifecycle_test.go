package lifecycle

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const panicChildEnv = "LIFECYCLE_PANIC_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(panicChildEnv) != "" {
		g := NewGroup()
		g.Go("bad", func(context.Context) { panic("told to") })
		<-make(chan struct{}, len(os.Args)) // only the panic ends this process
	}
	goleak.VerifyTestMain(m)
}

func TestStopCancelsAndWaits(t *testing.T) {
	g := NewGroup()
	var ended atomic.Int32
	for range 5 {
		if !g.Go("worker", func(ctx context.Context) {
			<-ctx.Done()
			runtime.Gosched()
			ended.Add(1)
		}) {
			t.Fatal("a fresh group refused a goroutine")
		}
	}
	g.Stop()
	if n := ended.Load(); n != 5 {
		t.Fatalf("Stop returned after %d of 5 goroutines", n)
	}
	if g.Context().Err() == nil {
		t.Fatal("the context lives on after Stop")
	}
	if g.Go("late", func(context.Context) { t.Error("a goroutine started after Stop") }) {
		t.Fatal("Go after Stop returned true")
	}
	g.Stop()
}

func TestStopOfAnEmptyGroupReturns(t *testing.T) {
	g := NewGroup()
	g.Stop()
	if left := g.StopTimeout(time.Hour); left != nil {
		t.Fatalf("still running: %v", left)
	}
}

func TestStopTimeoutNamesWhatStillRuns(t *testing.T) {
	g := NewGroup()
	release := make(chan struct{})
	stubborn := func(context.Context) { <-release }
	g.Go("reader", stubborn)
	g.Go("applier", stubborn)
	g.Go("reader", stubborn)
	g.Go("polite", func(ctx context.Context) { <-ctx.Done() })
	want := []string{"applier", "reader", "reader"}
	deadline := time.Now().Add(10 * time.Second)
	for got := g.StopTimeout(time.Millisecond); !slices.Equal(got, want); got = g.StopTimeout(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v, want %v", got, want)
		}
	}
	close(release)
	g.Stop()
	if left := g.Running(); left != nil {
		t.Fatalf("running after Stop: %v", left)
	}
}

func TestGoexitCountsAsReturning(t *testing.T) {
	g := NewGroup()
	g.Go("quits", func(context.Context) { runtime.Goexit() })
	g.Stop()
}

func TestPanicIsNotSwallowed(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), panicChildEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: told to") {
		t.Fatalf("the process with the panicking goroutine ended with %v:\n%s", err, out)
	}
}

func TestGroupUnderStress(t *testing.T) {
	for range 300 {
		g := NewGroup()
		var started, ended atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for g.Go("w", func(ctx context.Context) {
					defer ended.Add(1)
					if started.Add(1)%3 == 0 {
						<-ctx.Done()
					}
					// A goroutine of the group may start another, also while the group is being stopped.
					g.Go("child", func(ctx context.Context) { <-ctx.Done() })
				}) {
					if started.Load() > 50 {
						return
					}
				}
			})
		}
		for range 3 {
			wg.Go(func() {
				g.Stop()
				if s, e := started.Load(), ended.Load(); s != e {
					t.Errorf("Stop returned with %d started and %d ended", s, e)
				}
			})
		}
		wg.Wait()
	}
}

func TestCleanupsRunInReverseOnceAndJoinErrors(t *testing.T) {
	var c Cleanups
	var order []int
	first, third := errors.New("first"), errors.New("third")
	c.Add(func() error { order = append(order, 1); return first })
	c.Add(func() error { order = append(order, 2); return nil })
	c.Add(func() error { order = append(order, 3); return third })
	err := c.Run()
	if !errors.Is(err, first) || !errors.Is(err, third) {
		t.Fatalf("Run returned %v", err)
	}
	if !slices.Equal(order, []int{3, 2, 1}) {
		t.Fatalf("order %v", order)
	}
	if err := c.Run(); err != nil || len(order) != 3 {
		t.Fatalf("a second Run returned %v and ran up to %v", err, order)
	}
}

func TestReleasedCleanupsDoNotRun(t *testing.T) {
	var c Cleanups
	c.Add(func() error { t.Error("ran after Release"); return nil })
	c.Release()
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentRunsCallEachCleanupOnce(t *testing.T) {
	var c Cleanups
	var calls atomic.Int32
	for range 100 {
		c.Add(func() error { calls.Add(1); return nil })
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { c.Run() })
	}
	wg.Wait()
	if n := calls.Load(); n != 100 {
		t.Fatalf("%d calls of 100 cleanups", n)
	}
}
