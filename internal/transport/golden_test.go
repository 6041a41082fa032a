package transport

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

var update = flag.Bool("update", false, "write the golden file anew: only for a message that is new")

// TestFramesAreGolden pins every frame this room writes: a changed byte is a
// format that other nodes of the cluster do not read.
func TestFramesAreGolden(t *testing.T) {
	var out bytes.Buffer
	line := func(name string, b []byte) { fmt.Fprintf(&out, "%s %s\n", name, hex.EncodeToString(b)) }
	requests, responses := messages()
	for i, req := range requests {
		typ, b := encoded(t, req)
		line(fmt.Sprintf("%T", req), b)
		b, err := encodeResponse(nil, responseType(typ), responses[i], errors.New("why"))
		if err != nil {
			t.Fatal(err)
		}
		line(fmt.Sprintf("%T", responses[i]), b)
	}
	h := &handshake{nonceD: bytes.Repeat([]byte{1}, nonceBytes), nonceL: bytes.Repeat([]byte{2}, nonceBytes), helloD: []byte("d")}
	line("dialer's proof", h.prove([]byte("key"), roleDialer, []byte("d")))
	line("listener's proof", h.prove([]byte("key"), roleListener, []byte("l")))

	script := &recordConn{}
	d := &handshake{t: &Transport{cfg: Config{ClusterKeys: []string{"key"}}}, rw: script, left: HandshakeBytesMax}
	d.dial(wire.Hello{}) // fails for want of an answer, after the start was written
	line("start without its nonce", script.wrote.Bytes()[:startBytes-nonceBytes])
	script.wrote.Reset()
	d.refuse(errors.New("no"))
	line("refusal", script.wrote.Bytes())
	compareGolden(t, "testdata/frames-v1.golden", out.Bytes())
}

type recordConn struct {
	scriptConn
	wrote bytes.Buffer
}

func (c *recordConn) Write(b []byte) (int, error) { return c.wrote.Write(b) }

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs:\n got\n%s\nwant\n%s", path, got, want)
	}
}
