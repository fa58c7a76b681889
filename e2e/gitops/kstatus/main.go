// Command kstatus prints the status of objects as kstatus computes it, which Flux and other tools wait on.
//
// Objects are JSON documents on standard input, one after the other; there is one line of output for each, for example
// "InProgress 1 of 2 replicas take requests".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	if err := each(os.Stdin, kstatus); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func kstatus(object *unstructured.Unstructured) (string, error) {
	result, err := status.Compute(object)
	if err != nil {
		return "", fmt.Errorf("compute the status of %s: %w", object.GetName(), err)
	}
	return fmt.Sprintf("%s %s", result.Status, result.Message), nil
}

// each prints what ask answers for every object.
func each(input io.Reader, ask func(*unstructured.Unstructured) (string, error)) error {
	decoder := json.NewDecoder(input)
	for {
		var document json.RawMessage
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		answer, err := ask(object)
		if err != nil {
			return err
		}
		fmt.Println(answer)
	}
}
