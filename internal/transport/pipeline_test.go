package transport

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineEndsWithTheAnswerThatEndsIt: after an answer of a newer term, or one that
// refuses, raft reads no further answers. Its next requests must fail, and not wait for ever
// for somebody to read: raft would neither replicate to that follower again nor shut down.
func TestPipelineEndsWithTheAnswerThatEndsIt(t *testing.T) {
	for name, last := range map[string]raft.AppendEntriesResponse{
		"a newer term": {Term: 3, Success: true},
		"a refusal":    {Term: 2},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook()
			srv, cli := start(t, "srv", b, nil), start(t, "cli", b, nil)
			go func() {
				for {
					select {
					case rpc := <-srv.Raft().Consumer():
						answer := last
						if rpc.Command.(*raft.AppendEntriesRequest).PrevLogEntry < 2 {
							answer = raft.AppendEntriesResponse{Term: 2, Success: true}
						}
						rpc.Respond(&answer, nil)
					case <-t.Context().Done():
						return
					}
				}
			}()
			p, err := cli.Raft().AppendEntriesPipeline("srv", "srv")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			read := make(chan bool)
			go func() { // as raft's pipelineDecode does
				for f := range p.Consumer() {
					if r := f.Response(); r.Term > f.Request().Term || !r.Success {
						break
					}
				}
				close(read)
			}()
			failed := make(chan uint64, 1)
			go func() { // as its pipelineReplicate does
				for n := uint64(1); ; n++ {
					if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 2, PrevLogEntry: n}, &raft.AppendEntriesResponse{}); err != nil {
						failed <- n
						return
					}
				}
			}()
			select {
			case n := <-failed:
				if n < 3 {
					t.Errorf("request %d failed, before the answer that ends the pipeline was read", n)
				}
			case <-time.After(10 * time.Second):
				t.Error("a request waits for ever")
			}
			select {
			case <-read:
			case <-time.After(10 * time.Second):
				t.Error("the answer that ends the pipeline was not given to raft")
			}
		})
	}
}
