package fetch

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/blob"
)

// Job is the fetching of many files into a blob store.
type Job struct {
	Wants []Want
	Blobs *blob.Store
	// Take is lent file i, whole, checked and at its beginning, and puts into the batch what is to
	// be kept of it. It must not write to the file nor commit the batch. Several run at once. An
	// error ends the job.
	Take func(ctx context.Context, i int, f *os.File, b *blob.Batch) error
	// Adopts tells that Take checks the bytes once more as it keeps them, and may give the file of a
	// directory another link and time: that it changed meanwhile says nothing then.
	Adopts bool
	// Kept is told which files are durable in the store by now: the moment to write rows. One runs
	// at a time. What it was not told, or failed for, is taken again by a later job without being
	// fetched again.
	Kept func(ctx context.Context, done []int) error
	// Say is told how far the job is, some times a second and at the end; nil for none.
	Say func(Progress)
}

// Progress is how far a Job is.
type Progress struct {
	Files   int64   `json:"files"`
	Done    int64   `json:"done"`  // kept
	Bytes   int64   `json:"bytes"` // that came by HTTP
	Retries int64   `json:"retries"`
	Rate    float64 `json:"rate"` // bytes per second, of late
}

// Bounds of one batch: a flush pays by then, and files under way stay few.
const (
	takers     = 3 // while one waits for the disk, others hash
	batchFiles = 64
	batchBytes = 64 << 20
	batchWait  = 100 * time.Millisecond // without another file
	sayEvery   = 250 * time.Millisecond
)

// fetched is a file on its way from a worker to a taker.
type fetched struct {
	i int
	g *got
}

// job is a running Job.
type job struct {
	Job
	c             *Client
	o             *Origins
	ctx           context.Context
	fail          context.CancelCauseFunc
	next          atomic.Int64
	ready         chan fetched
	bytes         atomic.Int64
	retries, done atomic.Int64
	keeping       sync.Mutex // held during Kept
}

// All fetches all files of j, as many at once as the origins bear. When it fails, or ctx ends,
// what has come whole is kept first, and what has come in part stays for the next time.
func (c *Client) All(ctx context.Context, o *Origins, j Job) error {
	j.Wants = slices.Clone(j.Wants) // check brings them into form
	for i := range j.Wants {
		if err := j.Wants[i].check(); err != nil {
			return err
		}
	}
	jctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &job{Job: j, c: c, o: o, ctx: jctx, fail: fail, ready: make(chan fetched)}
	var workers, rest sync.WaitGroup
	for range min(c.cfg.Workers, len(j.Wants)) {
		workers.Go(r.work)
	}
	for range takers {
		rest.Go(r.take)
	}
	ended := make(chan struct{})
	if j.Say != nil {
		rest.Go(func() { r.say(ended) })
	}
	workers.Wait()
	close(r.ready)
	close(ended)
	rest.Wait()
	if j.Say != nil {
		j.Say(r.progress(0))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.Cause(jctx)
}

// work fetches files until there are none left.
func (r *job) work() {
	for {
		i := int(r.next.Add(1)) - 1
		if i >= len(r.Wants) || r.ctx.Err() != nil {
			return
		}
		g, err := r.c.file(r.ctx, r.o, &task{w: &r.Wants[i], tally: &r.bytes, retries: &r.retries})
		if err != nil {
			r.fail(err) // the first one counts
			return
		}
		r.ready <- fetched{i, g} // a taker is there until ready is closed
	}
}

// take takes files into batches of its own until ready is closed.
func (r *job) take() {
	b := r.Blobs.Batch()
	var held []fetched
	var size int64
	idle := time.NewTimer(batchWait)
	defer idle.Stop()
	for {
		idle.Reset(batchWait)
		select {
		case f, ok := <-r.ready:
			if !ok {
				r.keep(b, held)
				return
			}
			n, err := r.takeOne(f, b)
			if err != nil {
				r.fail(errors.Join(err, f.g.done(false)))
				continue
			}
			held = append(held, f)
			if size += n; len(held) < batchFiles && size < batchBytes {
				continue
			}
		case <-idle.C:
		}
		r.keep(b, held)
		held, size = nil, 0
	}
}

func (r *job) takeOne(f fetched, b *blob.Batch) (int64, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if err := r.Take(r.ctx, f.i, f.g.f, b); err != nil {
		return 0, err
	}
	if !r.Adopts {
		if err := f.g.unchanged(); err != nil {
			return 0, err
		}
	}
	info, err := f.g.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// keep makes a batch durable, tells it, and lets go of its files; also when the job has failed.
func (r *job) keep(b *blob.Batch, held []fetched) {
	err := b.Commit()
	if err == nil && len(held) > 0 {
		done := make([]int, len(held))
		for n, f := range held {
			done[n] = f.i
		}
		r.keeping.Lock()
		err = r.Kept(context.WithoutCancel(r.ctx), done)
		r.keeping.Unlock()
	}
	taken := err == nil
	for _, f := range held {
		err = errors.Join(err, f.g.done(taken))
	}
	if err != nil {
		r.fail(err)
		return
	}
	r.done.Add(int64(len(held)))
}

// say tells the progress until ended is closed.
func (r *job) say(ended <-chan struct{}) {
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	var rate float64
	var last int64
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		now := r.bytes.Load()
		rate += (float64(now-last)/sayEvery.Seconds() - rate) / 8 // the last two seconds or so
		last = now
		r.Say(r.progress(rate))
	}
}

func (r *job) progress(rate float64) Progress {
	return Progress{Files: int64(len(r.Wants)), Done: r.done.Load(), Bytes: r.bytes.Load(), Retries: r.retries.Load(), Rate: rate}
}
