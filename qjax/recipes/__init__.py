"""Published methods as compositions of transforms, one file a paper, with the authors' defaults and the catalogue ID.

The mathematics stays in its solver; a recipe is what the paper did with it. A study's config names them by their
names in `__all__`.
"""

from __future__ import annotations

from qjax.recipes.adepu2024_framequant import framequant
from qjax.recipes.alternating_least_squares import alternating
from qjax.recipes.an2026_glowq import glowq
from qjax.recipes.ashkboos2024_quarot import quarot
from qjax.recipes.badri2023_hqq import hqq
from qjax.recipes.behdin2023_quantease import quantease
from qjax.recipes.chee2023_quip import quip
from qjax.recipes.chen2024_prefixquant import prefixquant
from qjax.recipes.cheng2023_signround import signround
from qjax.recipes.cheng2023_teq import teq
from qjax.recipes.combined_few_bits import few_bits
from qjax.recipes.combined_w4a4 import w4a4
from qjax.recipes.cross_domain import int8_with_float_outliers
from qjax.recipes.czaja2024_frames import frames
from qjax.recipes.dettmers2022_llm_int8 import llm_int8, without_features
from qjax.recipes.dettmers2023_spqr import spqr
from qjax.recipes.ding2023_cbq import cbq
from qjax.recipes.frantar2022_gptq import gptq
from qjax.recipes.frantar2022_obq import obq
from qjax.recipes.gordon2023_eptq import eptq
from qjax.recipes.guo2024_decoupleq import decoupleq
from qjax.recipes.guo2024_gptqt import gptqt
from qjax.recipes.huang2025_milo import milo
from qjax.recipes.hubara2020_adaquant import adaquant
from qjax.recipes.kim2023_squeezellm import squeezellm
from qjax.recipes.koo2024_opal import opal
from qjax.recipes.layers_in_turn import layer_by_layer
from qjax.recipes.lee2023_flexround import flexround
from qjax.recipes.lee2024_owq import owq
from qjax.recipes.li2016_twn import twn
from qjax.recipes.li2021_brecq import brecq
from qjax.recipes.li2023_fp8_bert import fp8_bert
from qjax.recipes.li2023_llm_mq import llm_mq
from qjax.recipes.li2023_loftq import loftq
from qjax.recipes.li2023_mixed_groups import mixed_groups
from qjax.recipes.li2023_norm_tweaking import norm_tweaking
from qjax.recipes.li2024_repquant import repquant
from qjax.recipes.li2024_tesseraq import tesseraq
from qjax.recipes.li2025_gptaq import gptaq
from qjax.recipes.li2026_batquant import batquant
from qjax.recipes.li2026_rescomp import rescomp
from qjax.recipes.lin2023_awq import awq
from qjax.recipes.lin2024_duquant import duquant
from qjax.recipes.liu2023_llm_fp4 import llm_fp4
from qjax.recipes.liu2023_qllm import qllm
from qjax.recipes.liu2024_crossquant import crossquant
from qjax.recipes.liu2024_eora import eora
from qjax.recipes.liu2024_intactkv import intactkv
from qjax.recipes.liu2024_spinquant import spinquant
from qjax.recipes.ma2024_affinequant import affinequant
from qjax.recipes.mckinstry2018_faq import faq
from qjax.recipes.mean_magnitude import absmean
from qjax.recipes.meng2026_arcquant import arcquant
from qjax.recipes.nagel2019_bias_correction import bias_correction
from qjax.recipes.nagel2019_data_free import data_free
from qjax.recipes.nagel2020_adaround import adaround
from qjax.recipes.nagel2021_white_paper import white_paper
from qjax.recipes.output_directed import odq
from qjax.recipes.pan2023_smoothquant_plus import smoothquant_plus
from qjax.recipes.plain_cache import kv_cache
from qjax.recipes.plain_products import weights_and_inputs
from qjax.recipes.ramachandran2024_microscopiq import microscopiq
from qjax.recipes.round_to_nearest import rtn
from qjax.recipes.shao2023_omniquant import omniquant
from qjax.recipes.sheng2023_flexgen import flexgen
from qjax.recipes.son2024_cushioncache import cushioncache
from qjax.recipes.sun2024_flatquant import flatquant
from qjax.recipes.sun2024_massive_activations import pinned_massive
from qjax.recipes.tan2024_mobilequant import mobilequant
from qjax.recipes.trukhanov2024_sorted_keys import sorted_keys
from qjax.recipes.unsloth2024_dynamic import unsloth_dynamic
from qjax.recipes.wang2024_bitstack import bitstack
from qjax.recipes.wang2024_outliertune import outliertune
from qjax.recipes.wei2022_outlier_suppression import outlier_suppression
from qjax.recipes.wei2023_outlier_suppression_plus import outlier_suppression_plus
from qjax.recipes.wide_tokens import token_adaptive
from qjax.recipes.wu2020_int8 import int8_workflow
from qjax.recipes.wu2023_zeroquant_fp import zeroquant_fp
from qjax.recipes.xiao2022_smoothquant import smoothquant
from qjax.recipes.xu2024_llm_npu import llm_npu
from qjax.recipes.yan2026_d2quant import d2quant
from qjax.recipes.yao2022_zeroquant import w8a8, zeroquant
from qjax.recipes.yao2023_lorc import lorc
from qjax.recipes.yi2024_rotated_runtime_smooth import rotated_runtime_smooth
from qjax.recipes.yu2024_super_weight import super_weights, without_weights
from qjax.recipes.yuan2023_rptq import rptq
from qjax.recipes.yvinec2023_nupes import nupes
from qjax.recipes.zadeh2020_gobo import gobo
from qjax.recipes.zeng2024_abq_llm import abq_llm
from qjax.recipes.zhang2023_spfq import gpfq, spfq
from qjax.recipes.zhang2024_lqer import lqer
from qjax.recipes.zhang2024_qera import qera
from qjax.recipes.zhao2023_atom import atom
from qjax.recipes.zhao2024_aser import aser

__all__ = [
    "abq_llm",
    "absmean",
    "adaquant",
    "adaround",
    "affinequant",
    "alternating",
    "arcquant",
    "aser",
    "atom",
    "awq",
    "batquant",
    "bias_correction",
    "bitstack",
    "brecq",
    "cbq",
    "crossquant",
    "cushioncache",
    "d2quant",
    "data_free",
    "decoupleq",
    "duquant",
    "eora",
    "eptq",
    "faq",
    "few_bits",
    "flatquant",
    "flexgen",
    "flexround",
    "fp8_bert",
    "framequant",
    "frames",
    "glowq",
    "gobo",
    "gpfq",
    "gptaq",
    "gptq",
    "gptqt",
    "hqq",
    "int8_with_float_outliers",
    "int8_workflow",
    "intactkv",
    "kv_cache",
    "layer_by_layer",
    "llm_fp4",
    "llm_int8",
    "llm_mq",
    "llm_npu",
    "loftq",
    "lorc",
    "lqer",
    "microscopiq",
    "milo",
    "mixed_groups",
    "mobilequant",
    "norm_tweaking",
    "nupes",
    "obq",
    "odq",
    "omniquant",
    "opal",
    "outlier_suppression",
    "outlier_suppression_plus",
    "outliertune",
    "owq",
    "pinned_massive",
    "prefixquant",
    "qera",
    "qllm",
    "quantease",
    "quarot",
    "quip",
    "repquant",
    "rescomp",
    "rotated_runtime_smooth",
    "rptq",
    "rtn",
    "signround",
    "smoothquant",
    "smoothquant_plus",
    "sorted_keys",
    "spfq",
    "spinquant",
    "spqr",
    "squeezellm",
    "super_weights",
    "teq",
    "tesseraq",
    "token_adaptive",
    "twn",
    "unsloth_dynamic",
    "w4a4",
    "w8a8",
    "weights_and_inputs",
    "white_paper",
    "without_features",
    "without_weights",
    "zeroquant",
    "zeroquant_fp",
]
