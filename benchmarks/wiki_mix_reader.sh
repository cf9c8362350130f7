#!/usr/bin/env bash
# Everything behind "Retrieval on wiki_mix" and "Frozen reader on wiki_mix" in docs/results.md, in order. Hours on two slow cores;
# each command resumes or reuses what is there. Nothing is tuned on squad_dev or nq_oracle_dev.
set -euo pipefail
cd "$(dirname "$0")/.."
export FROZENLM_HOME=${FROZENLM_HOME:-runs}
frozenlm=${FROZENLM:-frozenlm}
data=${FROZENLM_SHARED:-../shared}/data/wiki_mix
out=$FROZENLM_HOME/wiki_mix/evaluation

evaluate() { # NAME QUESTIONS CONFIG [OPTIONS]
    local name=$1 questions=$2 config=$3
    shift 3
    [ -f "$out/$name-$questions/metrics.json" ] && return
    echo "== $name on $questions"
    $frozenlm evaluate "configs/$config" --quiet --out "$out/$name-$questions" \
        --set "evaluation.questions.path=$(realpath "$data")/queries/$questions.jsonl" \
        --set "evaluation.questions.qrels=$(realpath "$data")/qrels/$questions.tsv" "$@" > /dev/null
}

dense='retriever={kind: dense, encoder: {model: sentence-transformers/all-MiniLM-L6-v2, dtype: bfloat16}}'
sets=(squad_dev nq_oracle_dev)
prefix=(--set prompt.name=reader_prefix --set prompt.position=prefix)

$frozenlm index configs/wiki_mix.yaml
$frozenlm train configs/wiki_mix_reranker.yaml
$frozenlm train configs/wiki_mix_reader.yaml
for q in "${sets[@]}"; do
    evaluate bm25 "$q" wiki_mix.yaml --set 'retriever={kind: bm25}'
    evaluate dense "$q" wiki_mix.yaml --set "$dense"
    evaluate hybrid "$q" wiki_mix.yaml
    evaluate suffix "$q" wiki_mix_reader.yaml
    evaluate zero "$q" wiki_mix_reader.yaml --set prompt=null
    evaluate suffix-rerank "$q" wiki_mix_reader_rerank.yaml
    # The other readers behind the re-ranker read the ranking that this run has written.
    ranked="retriever={kind: precomputed, file: $(realpath "$out")/suffix-rerank-$q/retrieval.json}"
    evaluate zero-rerank "$q" wiki_mix_reader.yaml --set prompt=null --set "$ranked"
    evaluate closed "$q" wiki_mix_reader.yaml --set prompt=null --set packing.max_passages=0 --set "$ranked"
    # One passage in the window: there the first place is all that counts.
    one=(--set prompt=null --set packing.max_passages=1)
    evaluate zero1 "$q" wiki_mix_reader.yaml "${one[@]}"
    evaluate zero1-rerank "$q" wiki_mix_reader.yaml "${one[@]}" --set "$ranked"
    evaluate zero-oracle "$q" wiki_mix_reader.yaml --set prompt=null --oracle
    evaluate suffix-oracle "$q" wiki_mix_reader.yaml --oracle
done
# The two positions of the prompt, after as many steps as each other.
equal=(--set training.steps=100 --set training.eval_every=50)
suffix100=(--set prompt.name=reader_suffix100)
$frozenlm train configs/wiki_mix_reader.yaml "${prefix[@]}" "${equal[@]}"
$frozenlm train configs/wiki_mix_reader.yaml "${suffix100[@]}" "${equal[@]}"
for q in "${sets[@]}"; do
    ranked="retriever={kind: precomputed, file: $(realpath "$out")/suffix-rerank-$q/retrieval.json}"
    evaluate suffix100 "$q" wiki_mix_reader.yaml "${suffix100[@]}"
    evaluate prefix "$q" wiki_mix_reader.yaml "${prefix[@]}"
    evaluate prefix-rerank "$q" wiki_mix_reader.yaml "${prefix[@]}" --set "$ranked"
    evaluate prefix-oracle "$q" wiki_mix_reader.yaml "${prefix[@]}" --oracle
done
