// Package browsertest opens the page of examples/ha in a browser and breaks nodes by its
// buttons.
package browsertest

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

var shots = flag.String("shots", "", "write pictures of the page into this directory")

// What scripts ask the page.
const (
	leader  = `(document.querySelector('.card[data-role=leader]')?.id ?? '')`
	newest  = `Number(document.querySelector('#rows tr td')?.textContent ?? 0)`
	card    = `document.getElementById(%q)`
	healthy = `[...document.querySelectorAll('.card')].every(c => c.dataset.health === 'well')`
	verdict = `[document.getElementById('lost').textContent, document.getElementById('doubled').textContent].join()`

	acknowledged = `Number(document.getElementById('acked').textContent.replace(/\D/g, ''))`
)

func TestPageGoesOnWhenNodesBreak(t *testing.T) {
	b := openBrowser(t)
	b.look(1280, 800, "light")
	b.do(chromedp.Navigate(startDemo(t).page))
	b.until("there is a leader, all nodes are well and rows come", leader+` !== '' && `+healthy+` && `+newest+` >= 3`)
	if asked, beyond := b.beyondLoopback(); asked < 3 || len(beyond) > 0 {
		t.Errorf("%d requests, of which these left this machine: %v", asked, beyond)
	}

	killed := eval[string](b, leader)
	before := eval[int](b, newest)
	b.do(chromedp.Click(chromedp.CSS("#" + killed + " [data-do=kill]")))
	b.until(killed+" is down", fmt.Sprintf(card+`.dataset.health === 'down'`, killed))
	b.until("another node leads", leader+` !== '' && `+leader+` !== `+fmt.Sprintf("%q", killed))
	b.until("rows go on", fmt.Sprintf(`%s >= %d`, newest, before+4))
	b.until("every row tells who received it, and whose term it is of", `[...document.querySelectorAll('#rows tr')].every(r => /node-\d/.test(r.cells[2].textContent) && /node-\d term \d+/.test(r.cells[3].textContent))`)
	if *shots != "" { // with something to see
		eval[bool](b, `setInterval(hurry, 1000), true`)
		b.until("there are many writes", `samples.length >= 70`)
	}
	for _, look := range []struct {
		name          string
		width, height int64
		scheme        string
	}{{"readme", 1280, 960, "light"}, {"light", 1280, 800, "light"}, {"dark", 1280, 800, "dark"}, {"phone", 390, 844, "light"}, {"phone-dark", 390, 844, "dark"}} {
		b.look(look.width, look.height, look.scheme)
		b.shoot(look.name)
		if wide := eval[int](b, "document.documentElement.scrollWidth"); wide > int(look.width) {
			t.Errorf("at a width of %d the page is %d wide", look.width, wide)
		}
	}
	b.look(1280, 800, "light")

	// With the keyboard alone.
	b.do(chromedp.Focus(chromedp.CSS("#"+killed+" [data-do=restart]")), chromedp.KeyEvent(kb.Enter))
	b.until(killed+" is back", healthy)
	b.until("all nodes hold the same", sameEverywhere)
	b.until("nothing is lost, nothing doubled", verdict+` === '0,0'`)

	cut := eval[string](b, leader)
	b.do(chromedp.Click(chromedp.CSS("#" + cut + " [data-do=cut]")))
	b.until("a leader that is cut off steps down", fmt.Sprintf(card+`.querySelector('.note').textContent.includes('refuses writes')`, cut))
	writeThrough(b, cut, "into the void")
	b.until("it refuses a write", `[...document.querySelectorAll('#trouble li')].some(l => l.textContent.includes('no leader'))`)
	b.shoot("cut")
	b.do(chromedp.Click(chromedp.CSS("#" + cut + " [data-do=cut]")))
	b.until("healed, the write is in the log", healthy+` && [...document.querySelectorAll('#rows tr')].some(r => r.cells[1].textContent === 'into the void' && r.cells[2].textContent === `+fmt.Sprintf("%q", cut)+`)`)

	source := eval[string](b, `document.getElementById('from').textContent`)
	b.do(chromedp.Click(chromedp.CSS("#" + source + " [data-do=pause]")))
	b.until(source+" is paused", fmt.Sprintf(card+`.dataset.health === 'paused'`, source))
	b.until("the page has moved to another node", fmt.Sprintf(`document.getElementById('from').textContent !== %q`, source))
	writeThrough(b, source, "an open question")
	b.until("a write without an answer is unknown", `[...document.querySelectorAll('#trouble li.open')].some(l => l.textContent.includes('an open question') && l.textContent.includes('it may have happened'))`)
	if eval[int](b, `Number(document.getElementById('unknown').textContent)`) == 0 {
		t.Error("no write is counted as unknown")
	}
	b.do(chromedp.Click(chromedp.CSS("#" + source + " [data-do=pause]")))
	b.until("all nodes hold the same again", healthy+` && `+sameEverywhere)
	b.until("it is resolved", `[...document.querySelectorAll('#trouble li:not(.open)')].some(l => /an open question.*it was (not written|written, once)/.test(l.textContent))`)
	b.until("nothing is unknown, lost or doubled", `document.getElementById('unknown').textContent === '0' && `+verdict+` === '0,0'`)
	if len(b.problems) > 0 {
		t.Errorf("the page's script: %v", b.problems)
	}
}

func TestPageStaysUsableWithoutAMajority(t *testing.T) {
	b := openBrowser(t)
	b.look(1280, 800, "light")
	b.do(chromedp.Navigate(startDemo(t).page))
	b.until("there is a leader, all nodes are well and the log was compared", leader+` !== '' && `+healthy+` && `+newest+` >= 3 && `+verdict+` === '0,0'`)

	// A reload, and so a tab that was duplicated, keeps what was acknowledged and writes under another name.
	name, acked := eval[string](b, `book.own.name`), eval[int](b, acknowledged)
	b.do(chromedp.Reload())
	b.until("the page writes again", fmt.Sprintf(`document.readyState === 'complete' && !!book.own && %s > %d`, acknowledged, acked))
	if again := eval[string](b, `book.own.name`); again == name {
		t.Errorf("after a reload the page writes as %s again", name)
	}

	hide := `Object.defineProperty(document, 'hidden', {value: %t, configurable: true}), document.dispatchEvent(new Event('visibilitychange')), stream.readyState === EventSource.CLOSED`
	if !eval[bool](b, fmt.Sprintf(hide, true)) {
		t.Error("a hidden page has a stream")
	}
	if eval[bool](b, fmt.Sprintf(hide, false)) {
		t.Error("a page that is shown again has no stream")
	}

	// Two voters end at once. What was under way has an unknown end; what comes later has not.
	eval[bool](b, `(async () => {
		window.most = 0;
		const real = window.fetch;
		let now = 0;
		window.fetch = async (url, ...rest) => {
			if (!String(url).endsWith('/write')) return real(url, ...rest);
			window.most = Math.max(window.most, ++now);
			try { return await real(url, ...rest); } finally { now--; }
		};
		await Promise.all(['node-1', 'node-2'].map((id) => act(document.getElementById(id), 'kill')));
		return true;
	})()`)
	b.until("nobody leads", `leads() === ''`)
	writeThrough(b, "node-3", "to nobody")
	b.until("writes are refused", `[...document.querySelectorAll('#trouble li')].some(l => l.textContent.includes('no leader'))`)
	b.until("the page says that nothing was compared", `document.getElementById('lost').classList.contains('stale') && document.querySelector('.age').textContent.includes('not compared for')`)
	b.shoot("stale")
	if ms := eval[float64](b, `(async () => { const began = performance.now(); await act(document.getElementById('node-4'), 'cut'); return performance.now() - began; })()`); ms > 1000 {
		t.Errorf("a button was answered after %.0f ms", ms)
	}
	if most := eval[int](b, `window.most`); most > 3 {
		t.Errorf("%d writes were under way at once", most)
	}
	if n := eval[int](b, `Number(document.getElementById('unknown').textContent)`); n > 3 {
		t.Errorf("%d writes are unknown", n)
	}
	eval[bool](b, `Promise.all([act(document.getElementById('node-1'), 'restart'), act(document.getElementById('node-4'), 'cut')]).then(() => true)`)
	b.until("there is a leader again", leader+` !== ''`)
	b.until("a line of one's own that waited is written", `[...document.querySelectorAll('#rows tr')].some(r => r.cells[1].textContent === 'to nobody')`)

	// The node that is shown cannot compare while it is cut off; others can.
	eval[bool](b, `act(document.getElementById('node-4'), 'show').then(() => act(document.getElementById('node-4'), 'cut')).then(() => true)`)
	b.until("the log is compared nevertheless", `from === 'node-4' && views.get('node-4').deaf && performance.now() - compared < 1000 && !document.getElementById('lost').classList.contains('stale')`)
	writeThrough(b, "node-3", "heard")
	b.until("what became of a line of one's own is announced", `document.querySelector('#announcer[role=status]').textContent.includes('“heard”: written through node-3')`)
	b.until("nothing is lost or doubled", `document.getElementById('unknown').textContent === '0' && `+verdict+` === '0,0'`)
	if len(b.problems) > 0 {
		t.Errorf("the page's script: %v", b.problems)
	}
}

// TestPageSaysWhatItDoesNotKnow has nodes and the whole demo end while the page is open.
func TestPageSaysWhatItDoesNotKnow(t *testing.T) {
	b := openBrowser(t)
	b.look(1280, 800, "light")
	d := startDemo(t)
	b.do(chromedp.Navigate(d.page))
	b.until("all is well", leader+` !== '' && `+healthy+` && `+newest+` >= 2 && `+verdict+` === '0,0'`)

	// An outage goes on when the writes end of which one saw it.
	eval[bool](b, `window.realFetch = window.fetch,
		window.fetch = (url, ...rest) => String(url).endsWith('/write') ? Promise.resolve(new Response('{"outcome": "unknown", "error": "planted"}')) : realFetch(url, ...rest), true`)
	b.until("an outage lasts for 3 s", `waiting() > 3000 && document.getElementById('outage').textContent.includes('it lasts')`)
	eval[bool](b, `window.fetch = realFetch, true`)
	b.until("it is over, and was not shorter", `parseFloat(lastOutage[0]) >= 3 && waiting() < 1000`)

	// The nodes are killed from a terminal: no node is left to tell the page.
	for _, pid := range eval[[]int](b, `[...views.values()].map((v) => v.pid)`) {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.until("the page knows that no node runs", `[...document.querySelectorAll('.card')].every((c) => c.dataset.health === 'down') && document.getElementById('banner').textContent.includes('No node runs')`)
	if after := eval[string](b, `act(document.getElementById('node-1'), 'restart').then(() => document.getElementById('node-1').querySelector('.role').textContent)`); after == "leader" {
		t.Error("a node that has just been started is shown as what it was before")
	}
	eval[bool](b, `Promise.all(['node-2', 'node-3', 'node-4'].map((id) => act(document.getElementById(id), 'restart'))).then(() => true)`)
	b.until("all is well again", leader+` !== '' && `+healthy+` && document.getElementById('banner').hidden`)

	rows, next := eval[int](b, newest), eval[int](b, `book.own.next`)
	eval[bool](b, `hurry(), true`)
	d.stop()
	b.until("the page says that it is not connected", `document.getElementById('banner').textContent.includes('Not connected')`)
	if claims := eval[string](b, `[...document.querySelectorAll('.card')].map((c) => c.querySelector('.role').textContent + ', ' + c.querySelector('.note').textContent + ', ' + c.querySelector('[data-field=pid]').textContent).join('; ')`); claims != strings.TrimSuffix(strings.Repeat("no answer, not known just now, –; ", 4), "; ") {
		t.Errorf("it says of nodes that it cannot know of: %s", claims)
	}
	if begun := eval[int](b, `book.own.next`) - next; begun > 12 {
		t.Errorf("%d writes were sent before it noticed", begun)
	}
	if begun := eval[int](b, `(async () => { const n = book.own.next; await sleep(2 * PACE); return book.own.next - n; })()`); begun > 0 {
		t.Errorf("it sent %d writes to nobody", begun)
	}
	b.shoot("gone")
	d.start(strings.TrimSuffix(strings.TrimPrefix(d.page, "http://"), "/"))
	b.until("the page finds a demo that was started again, with all that was written", fmt.Sprintf(`document.readyState === 'complete' && %s > %d && %s && %s === '0,0'`, newest, rows, healthy, verdict))
	if len(b.problems) > 0 {
		t.Errorf("the page's script: %v", b.problems)
	}
}

// writeThrough fills in the form and sends it with the keyboard.
func writeThrough(b *browser, node, text string) {
	eval[bool](b, fmt.Sprintf(`document.getElementById('through').value = %q, document.getElementById('text').value = %q, true`, node, text))
	b.do(chromedp.Focus(chromedp.CSS("#text")), chromedp.KeyEvent(kb.Enter))
}

// sameEverywhere counts and compares the rows of all nodes, each as that node has them.
const sameEverywhere = `(async () => {
	const all = await Promise.all(ids.map(async (id) => (await fetch('/node/' + id + '/content')).json()));
	return all.every((c) => c.sum && c.sum === all[0].sum && c.rows.length === all[0].rows.length);
})()`
