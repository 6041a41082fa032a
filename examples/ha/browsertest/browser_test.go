package browsertest

import (
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// testTimeout bounds a whole test.
const testTimeout = 90 * time.Second

// browser is a tab of a Chromium that has nothing from before.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string // URLs that were asked for
	problems []string // exceptions and errors of the page's script and of its policies
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && path == "" {
			path = found
		}
	}
	if path == "" {
		t.Fatal("no Chromium was found: apt-get install chromium")
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox,
		chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.heard); err != nil {
		t.Fatal(err)
	}
	b.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{})
		return chromedp.Void{}, err
	})
	return b
}

func (b *browser) heard(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
	}
}

// beyondLoopback returns what was asked for from anywhere else than this machine.
func (b *browser) beyondLoopback() (asked int, beyond []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		u, err := url.Parse(r)
		if err == nil && u.Scheme == "data" {
			continue
		}
		if asked++; err != nil || !net.ParseIP(u.Hostname()).IsLoopback() {
			beyond = append(beyond, r)
		}
	}
	return asked, beyond
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.fatal("%v", err)
	}
}

// fatal ends the test, with what the page looks like where that was asked for.
func (b *browser) fatal(format string, args ...any) {
	b.t.Helper()
	if b.ctx.Err() == nil {
		b.shoot("failed")
	}
	b.t.Fatalf(format, args...)
}

// eval runs a script in the page. What is not so yet is told by an error.
func eval[T any](b *browser, script string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.fatal("%s: %v", script, err)
	}
	return v
}

// until waits for a condition of the page.
func (b *browser) until(what, script string) {
	b.t.Helper()
	began := time.Now()
	for !eval[bool](b, script) {
		if time.Since(began) > 30*time.Second {
			b.fatal("waited in vain: %s\n%s", what, eval[string](b, "document.body.innerText"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what)
}

// look sets the size of the window and the colour scheme. Nothing moves, so that pictures are whole.
func (b *browser) look(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height), func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
		})
		return chromedp.Void{}, err
	})
}

// shoot writes a picture of the window, and one of the whole page, if the test was asked to.
func (b *browser) shoot(name string) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	for name, action := range map[string]chromedp.Action[[]byte]{name: chromedp.CaptureScreenshot(), name + "-whole": chromedp.FullScreenshot(100)} {
		png, err := chromedp.Run(b.ctx, action)
		if err == nil {
			err = os.WriteFile(filepath.Join(*shots, name+".png"), png, 0o644)
		}
		if err != nil {
			b.t.Errorf("picture %s: %v", name, err)
		}
	}
}
