package engine

import (
	"os"
	"sync/atomic"
)

// counters are counted where it happens and read from anywhere.
type counters struct {
	epochs, units, ahead, checkpoints atomic.Uint64
}

// Stats is what a database has done in this process, and how large its files are.
type Stats struct {
	Epochs      uint64 // committed here as leader
	Units       uint64 // in those epochs
	Ahead       uint64 // units that ran while the epoch before theirs was on its way
	Checkpoints uint64
	FileBytes   int64
	WALBytes    int64
}

// Stats may be called from any goroutine. It opens no file.
func (d *DB) Stats() Stats {
	return Stats{Epochs: d.count.epochs.Load(), Units: d.count.units.Load(), Ahead: d.count.ahead.Load(), Checkpoints: d.count.checkpoints.Load(),
		FileBytes: sizeOf(d.cfg.Path), WALBytes: sizeOf(d.cfg.Path + "-wal")}
}

// sizeOf is 0 for a file that is not there: a database being dropped, say.
func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
