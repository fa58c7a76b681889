// Command argo prints whether Argo CD would show a difference between a manifest and the stored object.
//
// Standard input holds pairs of JSON documents, the manifest and then the stored object; there is one line of output
// for each pair: "synced", or "out of sync" and the object that Argo CD would compare.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	if err := run(json.NewDecoder(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(input *json.Decoder) error {
	for {
		manifest, err := next(input)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		stored, err := next(input)
		if err != nil {
			return err
		}
		result, err := diff.Diff(manifest, stored)
		if err != nil {
			return fmt.Errorf("compare %s: %w", manifest.GetName(), err)
		}
		if result.Modified {
			fmt.Printf("out of sync: %s is not %s\n", result.NormalizedLive, result.PredictedLive)
		} else {
			fmt.Println("synced")
		}
	}
}

func next(input *json.Decoder) (*unstructured.Unstructured, error) {
	var document json.RawMessage
	if err := input.Decode(&document); err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(document); err != nil {
		return nil, fmt.Errorf("read an object: %w", err)
	}
	return object, nil
}
